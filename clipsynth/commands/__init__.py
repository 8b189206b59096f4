"""The commands of `clipsynth`, one file per family. They may import every floor, lazily.

generate.py    generate: prompts and images to files.
remake.py      vary, extend: sounds from an output.
inspect.py     inspect, models, doctor: describe a bundle, a service, this machine.
services.py    serve, api, worker, janitor, webhooks, openapi.
keys.py        keys create, list, revoke.
training.py    prepare, merge, correspondence, mismatch, train, export, average.
evaluation.py  evaluate, listen.
study.py       study: questions about bundles.
options.py     Options that several commands share.
"""
