"""Data that crosses process boundaries as JSON: requests, job payloads, resources, replay tokens.

Knows no HTTP, no Redis and no model.

request.py        Body of POST /v1/generations.
prompts.py        Weighted prompts, attributes, and their limits.
prompt_parser.py  Words of a prompt that set attributes.
sentences.py      Sentences of several sounds, and their order.
payload.py        Job payload, and the windows of its sounds.
generation.py     Replay token, and the resource.
understanding.py  What a model understands of a prompt, and warnings.
paths.py          Paths of routes, behind a proxy.
model_info.py     Models as their workers describe them.
"""
