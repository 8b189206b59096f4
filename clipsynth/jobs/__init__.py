"""State of jobs in Redis: records, queues, idempotency keys, and the models that workers serve.

Knows no HTTP and no model. RQ is only the transport; the record of a generation decides its state.

store.py           Creation and transitions of generations.
removal.py         Removal of generations.
record.py          Reading of generations, as resource or as a worker's view.
scripts.py         Lua scripts that change records.
queue.py           RQ queues, their jobs, and fair order between API keys.
reconcile.py       Unfinished generations that are in no queue.
idempotency.py     Idempotency keys.
webhook_queue.py   Webhooks that wait, by API key.
model_registry.py  Models that workers serve.
"""
