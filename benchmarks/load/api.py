"""Scenarios of the API: an idle service, overload, the cost of a POST and a poll, followers of events."""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from timeit import timeit
from typing import Any

import httpx
import numpy as np

from benchmarks.load.client import HttpAnswer, HttpClient, LoadRun, measure
from benchmarks.load.service import UNLIMITED, ServiceProcesses, running, simulated_worker
from clipsynth.schemas.generation import JobPayload
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings

SHORT = b'{"prompt": "rain", "seed": 7, "duration_s": 1.0}'


def percentiles(seconds: Sequence[float]) -> str:
    """Return p50, p99 and the largest, in ms."""
    if len(seconds) < 2:
        return "none"
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    return f"p50 {1e3 * p50:.1f}, p99 {1e3 * p99:.1f}, largest {1e3 * max(seconds):.1f}"


def announce_model(service: ServiceProcesses) -> None:
    """Let the API know the simulated model for a while, where no worker runs."""
    from benchmarks.load.simulated import MANIFEST
    from worker.main import model_info

    service.state.announce(model_info(MANIFEST))


def split_cores() -> int:
    """Keep this process and its children off the first core, and return that core."""
    core, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or {core})
    return core


def idle(model: Path | None = None, requests: int = 100, steps: int = 4, idle_seconds: float = 30.0) -> None:
    """Measure what the service adds to the bare pipeline, and the CPU of waiting.

    One client requests one sound after the other with `Prefer: wait`, in turn with the pipeline in this
    process, WAV included. `--model` is a bundle's folder; without it a tiny untrained one is built.
    """
    from tests.support.tiny import build_tiny_pipeline
    from worker.main import load

    with ExitStack() as stack:
        if not model:
            model = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiny-")))
            build_tiny_pipeline().save_pretrained(model)
        worker = ("-m", "clipsynth.cli", "worker")
        settings = {"model": model, "device": "cpu", "log_format": "text"}
        service = stack.enter_context(running(worker, also=("janitor", "webhooks"), **settings))
        predictor = load(Settings(model=model, device="cpu"))
        http = stack.enter_context(httpx.Client(base_url=service.url, timeout=60))
        fields = {"prompt": "a dog barking", "seed": 1, "num_inference_steps": steps, "duration_s": 0.5}
        parts: list[list[float]] = []

        def through_http() -> None:
            began = time.time()
            headers = {"prefer": "wait=60", "accept": "audio/wav"}
            response = http.post("/v1/generations", json=fields, headers=headers)
            ended = time.time()
            assert response.headers["content-type"] == "audio/wav", response.text
            at = service.state.get(response.headers["location"].rpartition("/")[2])
            parts.append([began, at.created_at, at.started_at or 0.0, at.finished_at or 0.0, ended])

        def bare() -> None:
            own = {"image_key": None, "negative_prompt": None, "num_outputs": 1, "output_formats": ["wav"]}
            name, guidance = predictor.manifest.name, predictor.manifest.guidance_scale
            payload = JobPayload.model_validate({**fields, **own, "model": name, "guidance_scale": guidance})
            predictor.encode_response(predictor.predict(payload))

        for _ in range(5):
            through_http(), bare()
        cpu = service.cpu_s()
        took = np.array([(timeit(through_http, number=1), timeit(bare, number=1)) for _ in range(requests)])
        p50, p95 = 1e3 * np.quantile(took, [0.5, 0.95], axis=0)
        print(f"service: p50 {p50[0]:.1f} ms, p95 {p95[0]:.1f}; pipeline alone: {p50[1]:.1f}, {p95[1]:.1f}")
        print(f"added: p50 {p50[0] - p50[1]:.1f} ms, p95 {p95[0] - p95[1]:.1f} ms")
        print(f"CPU of the API: {1e3 * (service.cpu_s() - cpu) / requests:.1f} ms per request")
        medians = ", ".join(f"{ms:.1f}" for ms in 1e3 * np.median(np.diff(parts[-requests:]), axis=0))
        print(f"p50 until accepted, until a worker has it, until made, until answered: {medians} ms")
        time.sleep(2.0)
        before = {name: service.cpu_s(name) for name in service.processes}
        time.sleep(idle_seconds)
        for name, cpu in before.items():
            print(f"idle, {name}: {100 * (service.cpu_s(name) - cpu) / idle_seconds:.2f} % of a core")


def overload(seconds: float = 60.0, times: float = 10.0) -> None:
    """Send `times` more requests than the worker can do, at a constant rate.

    The API has a core of its own where there are two. Fails unless every accepted job succeeds, and every
    other request is answered with 429 and Retry-After.
    """
    steps, step_s, rows = 16, 0.1, 32
    capacity = rows / (steps * step_s)
    body = json.dumps(
        {"prompt": "rain", "duration_s": 1.0, "num_inference_steps": steps, "guidance_scale": 1.0}
    )
    core = split_cores()

    def send(service: ServiceProcesses, rate: float, seconds: float) -> LoadRun:
        run = LoadRun(HttpClient(service.port, "/v1/generations").ask)
        due = [n / rate for n in range(round(rate * seconds))]
        asyncio.run(run.open_loop(itertools.repeat(body.encode()), due))
        return run

    def accepted(run: LoadRun) -> list[str]:
        return [json.loads(a.reply.body)["id"] for a in run.answers if a.reply and a.reply.status == 202]

    with running(simulated_worker(step_s, rows), rate_per_s=0, max_queued=200, api_cores={core}) as service:
        first = len(accepted(send(service, capacity, 3)))
        wait_until(lambda: service.ended() >= first, timeout_s=120)
        rss, cpu = service.rss(), service.cpu_s()
        run = send(service, times * capacity, seconds)
        rss, cpu = service.rss() - rss, service.cpu_s() - cpu
        ids = accepted(run)
        wait_until(lambda: service.ended() >= first + len(ids), timeout_s=120)
        ends = collections.Counter(service.state.get(generation_id).status for generation_id in ids)
    statuses = collections.Counter(a.reply.status if a.reply else 0 for a in run.answers)
    refused = [a for a in run.answers if a.reply and a.reply.status == 429]
    silent = sum(b"retry-after:" not in a.reply.head for a in refused)
    latencies = [a.latency_s for a in run.answers if a.reply and a.reply.status == 202]
    print(f"{len(run.answers)} requests, {times * capacity:.0f}/s: {dict(statuses)}; accepted: {dict(ends)}")
    print(f"ms until refused ({silent} without Retry-After): {percentiles([a.latency_s for a in refused])}")
    print(f"ms until accepted: {percentiles(latencies)}")
    print(f"ms that the client was late: {percentiles([a.sent - a.intended for a in run.answers])}")
    print(f"API: {100 * cpu / seconds:.0f} % of a core, memory {rss / 1e6:+.1f} MB")
    raise SystemExit(bool(silent) or ends != {"succeeded": len(ids)} or set(statuses) != {202, 429})


def enqueue(seconds: float = 5.0, rounds: int = 3) -> None:
    """Count POSTs and polls per second on one core, with eight clients; no worker runs."""
    core = split_cores()
    with running(None, api_cores={core}, **UNLIMITED) as service:
        announce_model(service)
        place = json.loads(service.post(SHORT))["links"]["self"]
        for name, path, body in (("POST", "/v1/generations", SHORT), ("GET", place, b"")):
            rates = []
            for _ in range(rounds):
                announce_model(service)
                client = HttpClient(service.port, path, method=name)

                async def ask(body: bytes, client: HttpClient = client) -> HttpAnswer:
                    answer = await client.ask(body)
                    assert answer.status < 300, answer
                    return answer

                found = measure(ask, itertools.repeat(body), in_flight=8, warm_up_s=0, seconds=seconds)
                rates.append(found.throughput)
            print(f"{name}: {statistics.median(rates):.0f}/s")


class EventFollower(asyncio.Protocol):
    """Follow one generation; note when the first event came, and when `completed` did."""

    def __init__(self, path: str) -> None:
        self.path, self.text, loop = path, b"", asyncio.get_running_loop()
        self.heard: dict[bytes, asyncio.Future[float]] = {}
        self.followed = self.heard[b"event: status"] = loop.create_future()
        self.completed = self.heard[b"event: completed"] = loop.create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        # a word may be cut between two pieces
        self.text = self.text[-20:] + data
        for word, heard in self.heard.items():
            if word in self.text and not heard.done():
                heard.set_result(time.perf_counter())

    def connection_lost(self, error: Exception | None) -> None:
        for heard in self.heard.values():
            if not heard.done():
                heard.set_exception(error or ConnectionError("closed before its end"))
                heard.exception()


def sse(clients: int = 10_000, idle_seconds: float = 30.0) -> None:
    """Measure what clients cost that follow the events of one generation on one API process.

    No worker runs; the generation waits in the queue, then it is canceled. `ulimit -n` must allow so many.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with running(None, **UNLIMITED) as service:
        announce_model(service)
        asyncio.run(_follow(service, json.loads(service.post(SHORT)), clients, idle_seconds))


async def _follow(service: ServiceProcesses, generation: dict[str, Any], clients: int, idle_s: float) -> None:
    def connections() -> int:
        return service.redis.info("clients")["connected_clients"]

    loop = asyncio.get_running_loop()
    rss, redis_before = service.rss(), connections()
    opening = asyncio.Semaphore(100)
    started = time.perf_counter()

    async def open_one() -> EventFollower:
        async with opening:
            path = generation["links"]["events"]
            _, client = await loop.create_connection(lambda: EventFollower(path), "127.0.0.1", service.port)
            await client.followed
            return client

    opened = await asyncio.gather(*(open_one() for _ in range(clients)))
    print(f"{clients} clients opened in {time.perf_counter() - started:.1f} s")
    print(f"memory of the API: {(service.rss() - rss) / clients / 1e3:.0f} kB a client", end="; ")
    print(f"connections to Redis: {redis_before} before, {connections()} with them")
    cpu = service.cpu_s()
    await asyncio.sleep(idle_s)
    print(f"CPU of the API while nothing happens: {100 * (service.cpu_s() - cpu) / idle_s:.1f} % of a core")
    canceled_at = time.perf_counter()
    await asyncio.to_thread(service.state.cancel, generation["id"])
    async with asyncio.timeout(120):
        heard = await asyncio.gather(*(client.completed for client in opened))
    print(f"ms until all clients knew of the end: {percentiles([at - canceled_at for at in heard])}")
