"""`/docs`: Swagger UI from this host alone; FastAPI's own page loads scripts from elsewhere."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

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
_CSP = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"


def install(app: FastAPI) -> None:
    """Add the page and its files."""

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
