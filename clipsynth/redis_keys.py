"""Names of all keys in Redis. A name that ends in a colon or a hyphen is a prefix.

They are constants, because each of them is stored in running services and must not change.
"""

from __future__ import annotations

# Generations. The suffix is the generation's id, or the API key's id for OWNER_INDEX and TOMBSTONES.
RECORD = "clipsynth:gen:"  # hash: the record
PROGRESS = "clipsynth:progress:"  # JSON, expires
GONE = "clipsynth:gone:"  # tombstone of an earlier version: the owner of a removed generation, expires
TOMBSTONES = "clipsynth:tombstones:"  # sorted set: id of a removed generation by the time it is kept until
KEPT = "clipsynth:kept"  # hash: bytes of the records of each owner
EVENTS = "clipsynth:events:"  # channel: new status, `progress` or `gone`
KEY_CHANGES = "key:"  # after EVENTS and before an API key's id: channel: `revoked`
OWNER_INDEX = "clipsynth:gens:"  # sorted set: id by creation time
DEADLINES = "clipsynth:deadlines"  # sorted set: id by deadline
EXPIRY = "clipsynth:expiry"  # sorted set: id by the time when its record and files are removed
UNFINISHED = "clipsynth:unfinished"  # hash: model by id
ENDED = "clipsynth:ended"  # hash: number of generations by final status
ORPHANS = "clipsynth:strays"  # number of orphaned jobs found
WRITE_CHECK = "clipsynth:write_check"  # written to see whether Redis takes writes, expires
IDEMPOTENCY = "clipsynth:idempotency:"  # then owner:sha256 of the key; "<fingerprint> <id>", expires

# Models. The suffix is the model's name.
MODELS = "clipsynth:models"  # set: names of all models that a worker has announced
MODEL = "clipsynth:model:"  # JSON of ModelInfo
ALIVE = "clipsynth:alive:"  # present while a worker serves the model
SEEN = "clipsynth:seen"  # hash: when a worker last served the model, by name
PRECISIONS = "clipsynth:precisions:"  # sorted set: precision by when a worker last announced it
ASK = "clipsynth:ask:"  # list: questions of the API about the model, expires
ANSWER = "clipsynth:answer:"  # list: the answer to the question of this id, expires
STARTING = "clipsynth:starting:"  # present while a worker loads the model

# Admission. The suffix is the model's name, or the API key's id for BUCKET.
LOAD = "clipsynth:load:"  # hash: unfinished generations `n` and their work `w`; per owner `n:<id>`, `w:<id>`
INFLIGHT = "clipsynth:inflight"  # hash: unfinished generations by owner
BUCKET = "clipsynth:bucket:"  # hash: token bucket of a rate limit
RESERVATIONS = "clipsynth:holds"  # sorted set: reservation by its time
TURNS = "clipsynth:turns:"  # hash: virtual start time of each owner's next job
ETA_RATIOS = "clipsynth:eta_ratios:"  # list: actual by estimated duration of the latest generations

SHARES = "clipsynth:shares:"  # then budget:key; sorted set: "<amount> <id>" by expiry

# API keys and webhooks.
API_KEYS = "clipsynth:keys"  # hash: record by id; revoked keys stay, so that no id is used twice
WEBHOOKS_OF = "clipsynth:webhooks:of:"  # then owner; sorted set: "<generation> <event>" by its next attempt
WEBHOOK_TURNS = "clipsynth:webhooks:turns"  # sorted set: owner by the time of its next attempt
WEBHOOKS = "clipsynth:webhooks"  # of an earlier version: one queue for all owners
WEBHOOKS_ENDED = "clipsynth:webhooks:ended"  # hash: number of deliveries by outcome

# RQ's queues. The suffix is the model's name, or the queue's name for UNCLAIMED and RECOVERY.
QUEUE_NAME = "clipsynth-"
QUEUE = "rq:queue:clipsynth-"  # list: ids of queued jobs
RUNNING = "rq:wip:clipsynth-"  # sorted set: "<id>:<execution>" of claimed jobs
WORKERS = "rq:workers:clipsynth-"  # set: workers; a killed one stays for a minute
UNCLAIMED = "clipsynth:unclaimed:"  # hash: when a job that no worker claimed was first seen
RECOVERY = "clipsynth:recovery:"  # lock of the worker that requeues jobs of lost workers


def lua_names(*names: str) -> str:
    """Return Lua that defines these constants of this module, for scripts that build key names."""
    return f"local {', '.join(names)} = {', '.join(repr(globals()[name]) for name in names)}\n"
