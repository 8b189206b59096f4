"""The commands that start services: `serve` for all of them, or one by one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from clipsynth.commands.options import Bundle, Device, settings_with

if TYPE_CHECKING:
    from clipsynth.settings import Settings


def _service_settings(**options: Any) -> Settings:
    """Return the settings of a service, whose files only its user may read."""
    from clipsynth.services.processes import keep_files_private

    keep_files_private()
    return settings_with(**options)


def serve(
    host: Annotated[str | None, Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, Option(help="Port to listen on; 8000 by default.")] = None,
    model: Bundle = None,
    device: Device = None,
) -> None:
    """Start API, worker, janitor, webhooks and Redis; Ctrl+C stops all.

    With CLIPSYNTH_REDIS_URL no Redis is started.
    """
    from clipsynth.services.supervisor import serve as run
    from worker.main import describe

    settings = _service_settings(host=host, port=port, model=model, device=device)
    raise SystemExit(run(settings, describe(settings), typer.echo))


def api(fd: Annotated[int | None, Option(hidden=True, help="A listening socket.")] = None) -> None:
    """Start only the HTTP API (needs CLIPSYNTH_REDIS_URL)."""
    from clipsynth.services.processes import importing

    with importing():
        from app.dependencies import warning
        from app.server import run

    settings = _service_settings()
    if message := warning(settings):
        logging.getLogger("clipsynth").warning(message)
    run(settings, fd)


def openapi() -> None:
    """Print the OpenAPI document of the API, as in docs/openapi.json."""
    import json

    from app.main import create_app
    from clipsynth.settings import Settings

    print(json.dumps(create_app(Settings(redis_url="redis://nowhere")).openapi(), indent=2))


def worker() -> None:
    """Start only a worker (needs CLIPSYNTH_REDIS_URL)."""
    from worker.main import main as run

    run(_service_settings())


def janitor() -> None:
    """Expire jobs and remove old files until stopped (needs CLIPSYNTH_REDIS_URL)."""
    import signal
    import threading

    from clipsynth.services.janitor import run

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    run(_service_settings(), stop)


def webhooks() -> None:
    """Send webhooks until stopped (needs CLIPSYNTH_REDIS_URL)."""
    from clipsynth.services.webhooks import run

    run(_service_settings())
