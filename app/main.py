"""`create_app(settings)`: the HTTP API as a FastAPI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse

from app.dependencies import Admin, KnownKeys, Reader, Services, ServicesDep
from app.memory import keep_giving_back
from app.middleware import request_context
from app.middleware.body_limit import BodyLimit
from app.middleware.metrics import CountRequests, Metrics
from app.notifications import Notifications
from app.responses import problems
from app.routes import elevenlabs, estimate, generations, health, outputs, pages, remakes, usage
from app.routes import events as event_routes
from clipsynth.budgets import Budgets
from clipsynth.errors import ServeError
from clipsynth.jobs.queue import connect
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.model_info import ServedModel
from clipsynth.schemas.request import GenerationRequest
from clipsynth.services.metrics_server import expose
from clipsynth.settings import Settings
from clipsynth.storage import Storage


def create_app(settings: Settings) -> FastAPI:
    """Return the application; it connects at the first request.

    Raises:
        ServeError: no Redis URL.
    """
    if not settings.redis_url:
        raise ServeError("the API needs CLIPSYNTH_REDIS_URL; `clipsynth serve` sets it")
    redis = connect(settings.redis_url)
    state = JobStore.from_settings(redis, settings)
    keys = KnownKeys(redis)
    events = Notifications(settings.redis_url, state, keys.forget)
    storage = Storage(settings.results_url)
    budgets = Budgets(redis, storage, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loops = (events.listen(), budgets.renew(), keep_giving_back())
        tasks = [asyncio.create_task(loop) for loop in loops]
        exposed = (
            expose(
                metrics.registry,
                settings.metrics_port,
                settings.metrics_address,
                healthy=lambda: True,
            )
            if settings.metrics_port is not None
            else None
        )
        yield
        if exposed:
            exposed.shutdown()
            exposed.server_close()
        while unended := [task for task in tasks if not task.done()]:
            # redis-py loses a cancellation that comes while it connects.
            for task in unended:
                task.cancel()
            await asyncio.wait(unended, timeout=1)
        redis.close()

    app = FastAPI(
        title="CLIPSynth",
        summary="Text or an image in, sound out.",
        version=version("clipsynth"),
        docs_url=None,  # app/routes/pages.py
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.services = Services(
        settings,
        redis,
        state,
        storage,
        budgets,
        events,
        keys,
    )
    app.add_middleware(request_context.HeadAsGet)
    app.add_middleware(BodyLimit, settings=settings)
    metrics = Metrics(state, budgets)
    app.add_middleware(CountRequests, metrics=metrics)
    request_context.install(app, settings)
    problems.install(app, count=metrics.refused)
    pages.install(app)
    app.include_router(generations.router)
    for routes in (event_routes, outputs, remakes, estimate, usage, elevenlabs, health):
        app.include_router(routes.router)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse, responses=problems.problems())
    def read_metrics(_: Admin) -> Response:
        """Return metrics for Prometheus."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", tags=["models"], responses=problems.problems())
    def models(services: ServicesDep, _: Reader) -> list[ServedModel]:
        """List the models that workers serve."""
        longest_s = services.settings.max_duration_s
        return [
            model.model_copy(update={"max_duration_s": max(longest_s, model.window_s)})
            if model.window_s
            else model
            for model in services.state.models()
        ]

    def describe() -> dict[str, Any]:
        description = FastAPI.openapi(app)
        for model in (
            GenerationRequest,
            remakes.ReplayRequest,
            remakes.VariationRequest,
            remakes.ContinuationRequest,
            elevenlabs.SoundGenerationRequest,
            problems.ProblemDetails,
        ):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            description["components"]["schemas"] |= schema.pop("$defs", {}) | {model.__name__: schema}
        return description

    app.openapi = describe  # type: ignore[method-assign]
    return app
