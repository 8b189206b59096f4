"""ASGI middleware around every request. It knows no route.

body_limit.py       Size of bodies, and time for them to arrive.
request_context.py  Request ids, security headers, the access log, unexpected errors, HEAD.
metrics.py          Counts requests for Prometheus.
redis_metrics.py    Queues and generations for Prometheus, read from Redis.
"""
