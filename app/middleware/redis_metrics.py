"""Metrics of queues, models and generations, read from Redis at each scrape.

They are equal in every API process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from clipsynth.admission.limits import load
from clipsynth.jobs.queue import get_queue
from clipsynth.jobs.reconcile import orphans_found
from clipsynth.jobs.store import JobStore
from clipsynth.jobs.webhook_queue import WebhookQueue
from clipsynth.redis_keys import RECORD, WORKERS
from clipsynth.schemas.model_info import ServedModel


class RedisCollector(Collector):
    """Collects from Redis.

    While Redis does not answer, `clipsynth_redis_up` is 0 and the rest is left out.
    """

    def __init__(self, state: JobStore) -> None:
        self._state = state

    def describe(self) -> list[Metric]:
        return []  # nothing is read before the first scrape

    def collect(self) -> Iterator[Metric]:
        try:
            metrics = [*self._models(self._state.models()), *self._counts(), *self._server()]
            up = 1.0
        except RedisError:
            metrics, up = [], 0.0
        yield GaugeMetricFamily("clipsynth_redis_up", "1 while Redis answers.", up)
        yield from metrics

    def _models(self, models: list[ServedModel]) -> list[Metric]:
        def family(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"clipsynth_{name}", text, labels=["model"])

        depth = family("queue_depth", "Jobs in the queue.")
        oldest = family("queue_oldest_age_seconds", "Age of the oldest job in the queue; 0 for none.")
        ready = family("model_ready", "1 while a worker serves it.")
        workers = family("workers", "Workers with a recent heartbeat.")
        unfinished = family("unfinished", "Generations accepted and not finished.")
        backlog = family("backlog_seconds", "Seconds of work in them for one worker.")
        wait = family("estimated_wait_seconds", "Seconds of work in them for the present workers.")
        for model in models:
            label = [model.name]
            queue = get_queue(model.name, self._state.redis)
            number, work = load(self._state.redis, model.name)
            alive = self._state.redis.scard(WORKERS + model.name)
            depth.add_metric(label, queue.count)
            oldest.add_metric(label, self._age(queue.key))
            ready.add_metric(label, float(model.status == "ready"))
            workers.add_metric(label, alive)
            unfinished.add_metric(label, number)
            if model.cost:
                seconds = work * model.cost.audio_step_s
                backlog.add_metric(label, seconds)
                wait.add_metric(label, seconds / max(1, alive))
        return [depth, oldest, ready, workers, unfinished, backlog, wait]

    def _age(self, queue_key: str) -> float:
        redis = self._state.redis
        first = cast(bytes | None, redis.lindex(queue_key, 0))
        created = cast(bytes | None, redis.hget(RECORD + first.decode(), "created_at")) if first else None
        return max(0.0, time.time() - float(created)) if created else 0.0

    def _counts(self) -> list[Metric]:
        ended = CounterMetricFamily("clipsynth_generations_ended", "Generations ended.", labels=["status"])
        for status, count in self._state.ended().items():
            ended.add_metric([status], count)
        waiting, sent = WebhookQueue(self._state.redis).counts()
        webhooks = GaugeMetricFamily("clipsynth_webhooks_waiting", "Webhook deliveries that wait.", waiting)
        deliveries = CounterMetricFamily(
            "clipsynth_webhook_deliveries", "Webhook deliveries, sent or given up.", labels=["outcome"]
        )
        for outcome, count in sent.items():
            deliveries.add_metric([outcome], count)
        orphans = CounterMetricFamily(
            "clipsynth_orphaned_jobs",
            "Unfinished generations that were in no queue and were requeued. Any is a fault.",
            orphans_found(self._state),
        )
        return [ended, webhooks, deliveries, orphans]

    def _server(self) -> list[Metric]:
        info = cast(dict[str, object], self._state.redis.info())
        return [
            GaugeMetricFamily(
                "clipsynth_redis_memory_bytes", "Memory that Redis uses.", float(str(info["used_memory"]))
            ),
            GaugeMetricFamily(
                "clipsynth_redis_max_memory_bytes",
                "Memory from which on Redis refuses writes; 0 for no limit.",
                float(str(info["maxmemory"])),
            ),
            GaugeMetricFamily(
                "clipsynth_redis_saves",
                "1 while Redis writes its append-only file without errors.",
                float(info["aof_enabled"] == 1 and info["aof_last_write_status"] == "ok"),
            ),
        ]
