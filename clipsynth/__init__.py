"""The contract between API, workers and clients, and the services around them.

budgets.py        Budgets of what all requests share, so that no client uses up everything (OWASP API4).
cli.py            The command line. Each command imports what it needs when it runs.
errors.py         Errors of the service, each with a stable `code`.
limited_child.py  The other side of clipsynth/services/limited_process.py: helper, keeper and child process.
log.py            Logs: lines of text, or JSON with the ids of request and job. Prompts are never logged.
redis_keys.py     Names of all keys in Redis. A name that ends in a colon or a hyphen is a prefix.
settings.py       Settings: `CLIPSYNTH_…` environment variables, read here and nowhere else.
storage.py        Files of generations at an fsspec URL: `file://` by default, or an object store.
video_file.py     Copy and write video files; each function runs in a limited child process. Needs PyAV.
"""
