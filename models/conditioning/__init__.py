"""From a request to conditions: prompts and attributes. Knows no network's inside.

prompts.py            Prompt: a text or an image with a weight.
attribute_targets.py  Requested attributes to conditioning scalars.
phrase_bank.py        Generic phrases, used as texts of images in training.
"""
