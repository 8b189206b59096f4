"""Admission of generations: limits of a queue and of each API key, and time estimates.

A request reserves its place before its generation is created. The same script that ends a generation releases
the place. Work is counted in network passes times seconds of sound (`JobPayload.work`).

limits.py   Reserve a place; estimate the time until the end of a request.
scripts.py  The Lua scripts.
questions.py  Questions to a worker: how the model understands a prompt.
"""
