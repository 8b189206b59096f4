"""The routes of the API.

generations.py  /v1/generations: create, list, follow, cancel, delete, download.
outputs.py      Spectrogram and peaks of an output.
remakes.py      Recipes, and /v1/replay.
estimate.py     /v1/estimate.
elevenlabs.py   /v1/sound-generation.
pages.py        The playground and /docs.
"""
