"""From a request to conditions: prompts and attributes. Knows no network's inside.

prompts.py            Prompt: a text or an image with a weight.
attribute_targets.py  Requested attributes to conditioning scalars.
branches.py           Conditions of a row, and the ones that guidance points away from.
timeline.py           Windows and levels of a sound.
embeddings.py         Embeddings of texts and images; the last ones are kept.
phrase_bank.py        Generic phrases, used as texts of images in training.
familiarity.py        How well a bundle knows a text or an image.
"""
