"""Metrics of the API process for Prometheus, and the middleware that counts requests."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.middleware.redis_metrics import RedisCollector
from clipsynth.budgets import Budgets
from clipsynth.errors import DeadlineUnreachable, KeptQuota, NoWorker, QueueFull, RateLimited, StorageFull
from clipsynth.jobs.store import JobStore

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REJECTS = (DeadlineUnreachable, KeptQuota, NoWorker, QueueFull, RateLimited, StorageFull)
REJECTS = frozenset(error.code for error in _REJECTS)


class Metrics:
    """The metrics of one application."""

    def __init__(self, state: JobStore, budgets: Budgets) -> None:
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
        self.registry.register(BudgetCollector(budgets))

    def refused(self, code: str) -> None:
        """Count an error response."""
        self.problems.labels(code).inc()
        if code in REJECTS:
            self.rejects.labels(code).inc()

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class BudgetCollector(Collector):
    """Collects what this process holds of each budget, and how often it refused more."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    def collect(self) -> Iterator[Metric]:
        held = GaugeMetricFamily("clipsynth_budget_held", "Held by this process.", labels=["budget"])
        limit = GaugeMetricFamily("clipsynth_budget_limit", "Most of it.", labels=["budget"])
        refusals = CounterMetricFamily(
            "clipsynth_budget_refusals",
            "Requests refused because a key, or the process, holds too much.",
            labels=["budget", "scope"],
        )
        for budget in self._budgets.all():
            held.add_metric([budget.name], budget.held)
            limit.add_metric([budget.name], budget.per_process)
            for scope, count in budget.refused.items():
                refusals.add_metric([budget.name, scope], count)
        yield from (held, limit, refusals)


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
