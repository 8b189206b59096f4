"""The commands of `clipsynth`, one file per family. They may import every floor, lazily.

generate.py    generate: prompts and images to files.
remake.py      vary, extend: sounds from an output.
inspect.py     inspect, models: describe a bundle or a service.
services.py    serve, api, worker, janitor, webhooks, openapi.
doctor.py      doctor: can a service run here?
keys.py        keys create, list, revoke.
training.py    prepare, merge, correspondence, mismatch, train, export, average.
evaluation.py  evaluate, listen.
study.py       study: questions about bundles.
options.py     Options that several commands share.
"""
