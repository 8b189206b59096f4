"""The HTTP API in FastAPI. It knows no torch and no model, only what workers publish.

main.py           create_app: joins routes, middleware and services.
server.py         uvicorn with a limit on the time for a request.
dependencies.py   Services that routes receive, and image slots.
auth.py           API keys and scopes of a caller.
notifications.py  Changes of generations: SSE and `Prefer: wait`.
"""
