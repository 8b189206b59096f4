"""The HTTP API in FastAPI. It knows no torch and no model, only what workers publish.

main.py           create_app: joins routes, middleware and services.
server.py         The API in uvicorn.
connections.py    Time for requests and answers, and the number of connections.
memory.py         Memory that is given back to the system.
dependencies.py   Services that routes receive, and the caller's API key.
notifications.py  Changes of generations: SSE and `Prefer: wait`.
"""
