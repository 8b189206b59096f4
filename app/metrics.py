"""`/metrics` for Prometheus: what this process answered, and what Redis knows of queues, models and generations."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipsynth.admission import load
from clipsynth.queue import get_queue
from clipsynth.state import State
from clipsynth.webhooks import counts

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one application."""

    def __init__(self, state: State) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("http_requests", "Requests answered.", labels, registry=self._registry)
        self.seconds = Histogram(
            "http_request_seconds",
            "Time to the end of the answer.",
            ("route",),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self.problems = Counter(
            "clipsynth_problems", "Requests refused, by code.", ("code",), registry=self._registry
        )
        self._registry.register(_RedisCollector(state))

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self._registry)


class _RedisCollector(Collector):
    """Reads Redis at each scrape."""

    def __init__(self, state: State) -> None:
        self._state = state

    def describe(self) -> list[Metric]:
        return []  # nothing is read before the first scrape

    def collect(self) -> Iterator[Metric]:
        models = self._state.models()
        depth = GaugeMetricFamily("clipsynth_queue_depth", "Jobs that wait.", labels=["model"])
        ready = GaugeMetricFamily("clipsynth_model_ready", "1 while a worker serves it.", labels=["model"])
        unfinished = GaugeMetricFamily(
            "clipsynth_unfinished", "Generations accepted and not ended.", labels=["model"]
        )
        backlog = GaugeMetricFamily(
            "clipsynth_backlog_seconds", "Seconds that their work takes one worker.", labels=["model"]
        )
        for model in models:
            number, work = load(self._state.redis, model.name)
            unfinished.add_metric([model.name], number)
            if model.cost:
                backlog.add_metric([model.name], work * model.cost.audio_step_s)
            depth.add_metric([model.name], get_queue(model.name, self._state.redis).count)
            ready.add_metric([model.name], float(model.status == "ready"))
        ended = CounterMetricFamily("clipsynth_generations_ended", "Generations ended.", labels=["status"])
        for status, count in self._state.ended().items():
            ended.add_metric([status], count)
        waiting, told = counts(self._state.redis)
        webhooks = GaugeMetricFamily("clipsynth_webhooks_waiting", "Webhooks that are to be told.", waiting)
        tellings = CounterMetricFamily(
            "clipsynth_webhooks_ended", "Webhooks told or given up.", labels=["status"]
        )
        for status, count in told.items():
            tellings.add_metric([status], count)
        yield from (depth, ready, unfinished, backlog, ended, webhooks, tellings)


class CountRequests:
    """ASGI middleware: counts and times requests by the route's template."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope.get("route") else "any"  # clients choose what is unknown
            self.metrics.requests.labels(method, route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)
