"""`/`, the playground, and `/docs`. Files in `static/` are served unchanged."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

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


class WholeFiles(StaticFiles):
    """Small files, always sent whole: Starlette answers a Range that it cannot read in plain text."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        return await super().get_response(path, scope)


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
    app.mount("/docs/static", WholeFiles(directory=Path(spec.origin).parent / "resources"), name="docs")


STATIC = Path(__file__).parents[1] / "static"


def install(app: FastAPI) -> None:
    """Add the playground and `/docs`."""
    install_docs(app)

    files = WholeFiles(directory=STATIC)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.mount("/static", files, name="static")
