"""Questions to one bundle or a few, by the functions of the evaluation: where its ceiling is, what each remedy is worth, how many steps it needs. Run: clipsynth study …"""
