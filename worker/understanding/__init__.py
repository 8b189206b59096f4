"""How the model understands prompts.

answers.py    Answers to the API's questions, and notes on jobs.
sentences.py  The sounds that a sentence asks for.
"""
