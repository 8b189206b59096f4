"""Metrics of the API process for Prometheus, and the middleware that counts requests."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.middleware.redis_metrics import RedisCollector
from clipsynth.errors import DeadlineUnreachable, KeptQuota, NoWorker, QueueFull, RateLimited, StorageFull
from clipsynth.jobs.store import JobStore

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REJECTS = (DeadlineUnreachable, KeptQuota, NoWorker, QueueFull, RateLimited, StorageFull)
REJECTS = frozenset(error.code for error in _REJECTS)


class Metrics:
    """The metrics of one application."""

    def __init__(self, state: JobStore) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("http_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "http_request_seconds",
            "Time to the end of the response.",
            ("route",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.problems = Counter(
            "clipsynth_problems", "Error responses, by code.", ("code",), registry=self.registry
        )
        self.rejects = Counter(
            "clipsynth_admission_rejects",
            "Generations rejected because of queue limits, rate, deadline or a missing worker, by code.",
            ("code",),
            registry=self.registry,
        )
        for code in REJECTS:
            self.rejects.labels(code)
        self.registry.register(RedisCollector(state))

    def refused(self, code: str) -> None:
        """Count an error response."""
        self.problems.labels(code).inc()
        if code in REJECTS:
            self.rejects.labels(code).inc()

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class CountRequests:
    """ASGI middleware that counts and times requests by route template."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        finally:
            route = getattr(scope.get("route"), "path", "none")

            # For unknown routes a client could create labels without limit.
            method = scope["method"] if scope.get("route") else "any"
            self.metrics.requests.labels(method, route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)
