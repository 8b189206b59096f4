"""Can one API key use up what all share? The model is simulated, all else is real.

__main__   one attack after the other, or all of them together, and what another key notices
attackers  ten clients of one key that do an attack, as a process at nice 19
wire       HTTP requests as bytes
"""
