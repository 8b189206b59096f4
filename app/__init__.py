"""The HTTP API in FastAPI. It knows no torch and no model, only what workers publish.

main.py           create_app: joins routes, middleware and services.
server.py         The API in uvicorn.
connections.py    Time for requests and answers, and the number of connections.
dependencies.py   Services that routes receive, and the caller's API key.
auth.py           API keys and scopes of a caller.
notifications.py  Changes of generations: SSE and `Prefer: wait`.
"""
