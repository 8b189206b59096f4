"""`/`, the playground, and `/docs`. Files in `static/` are served unchanged."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles

from clipsynth.security.headers import FRAMES

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>CLIPSynth</title>
<link rel="stylesheet" href="docs/static/swagger-ui.css">
<div id="ui"></div>
<script src="docs/static/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#ui"});\n'
# Swagger UI sets styles on its elements and draws its icons from data URLs.
_CSP = f"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; {FRAMES}"


def install_docs(app: FastAPI) -> None:
    """Add `/docs`: Swagger UI from this host; FastAPI's own page loads scripts from another one."""

    @app.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _CSP})

    @app.get("/docs/start.js", include_in_schema=False)
    async def start() -> Response:
        return Response(_START, media_type="text/javascript")

    spec = find_spec("fastapi_swagger")  # for its files; its code is not imported
    assert spec
    assert spec.origin
    app.mount("/docs/static", StaticFiles(directory=Path(spec.origin).parent / "resources"), name="docs")


STATIC = Path(__file__).parents[1] / "static"


def install(app: FastAPI) -> None:
    """Add the playground and `/docs`."""
    install_docs(app)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
