"""Routes of the API and pages. They read requests and choose responses.

Jobs are submitted by `app/requests`.

generations.py  /v1/generations: create, list, cancel, delete, audio.
events.py       Server-sent events of a generation.
outputs.py      Spectrogram and waveform peaks of an output.
remakes.py      Recipes of a generation and /v1/replay.
estimate.py     /v1/estimate.
usage.py        /v1/usage.
elevenlabs.py   /v1/sound-generation.
health.py       /livez, /healthz, /readyz.
pages.py        The playground and /docs.
"""
