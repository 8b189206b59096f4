"""Processes beside API and worker, and the tools to run them.

supervisor.py       `clipsynth serve`: all processes as children.
processes.py        Start child processes; wait for a condition.
embedded_redis.py   redis-server as a child.
connect.py          A Redis client for commands.
janitor.py          Expire jobs, remove old files, requeue orphans.
webhooks.py         Send signed webhooks.
limited_process.py  Run a function in a child process with limits.
metrics_server.py   /metrics and /healthz on a port.
healthcheck.py      Exit code of a URL, for containers.
"""
