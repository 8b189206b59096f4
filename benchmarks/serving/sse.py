"""How many clients can follow events of one API process, and what do they cost?

    python -m benchmarks.serving.sse --clients 10000                          # all follow one generation
    python -m benchmarks.serving.sse --clients 10000 --generations 10000      # each its own

No worker runs: the generations wait in the queue, then all are canceled at once. Needs `ulimit -n` above the number of clients, in both processes.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import time
from typing import cast

from benchmarks.serving.load import MANIFEST
from benchmarks.serving.service import Service, running
from clipsynth.schemas.generation import Generation
from worker.main import model_info

BODY = b'{"prompt": "rain", "seed": 7}'
AT_ONCE = 100  # connections that are being opened
WAIT_S = 120.0


class Client(asyncio.Protocol):
    """Follows one generation; notes when the first event came, and when `completed` did."""

    def __init__(self, path: str) -> None:
        self.path, self.text = path, b""
        loop = asyncio.get_running_loop()
        self.followed: asyncio.Future[float] = loop.create_future()
        self.completed: asyncio.Future[float] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(
            f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self.text = self.text[-20:] + data  # a word may be cut between two pieces
        for word, heard in ((b"event: status", self.followed), (b"event: completed", self.completed)):
            if word in self.text and not heard.done():
                heard.set_result(time.perf_counter())

    def connection_lost(self, error: Exception | None) -> None:
        for heard in (self.followed, self.completed):
            if not heard.done():
                heard.set_exception(error or ConnectionError("closed before its end"))
                heard.exception()


def connections(service: Service) -> int:
    return int(cast(dict[str, int], service.redis.info("clients"))["connected_clients"])


async def follow(service: Service, generations: list[Generation], clients: int, idle_s: float) -> None:
    """Open all clients, let them idle, cancel the generations, and print what that was like."""
    loop = asyncio.get_running_loop()
    before, redis_before = service.api_rss(), connections(service)
    opening = asyncio.Semaphore(AT_ONCE)
    started = time.perf_counter()

    async def open_one(n: int) -> Client:
        async with opening:
            path = generations[n % len(generations)].links["events"]
            _, client = await loop.create_connection(lambda: Client(path), "127.0.0.1", service.port)
            await client.followed
            return client

    opened = await asyncio.gather(*(open_one(n) for n in range(clients)))
    print(f"{clients} clients opened in {time.perf_counter() - started:.1f} s")
    grown = service.api_rss() - before
    print(
        f"memory of the API: {before / 1e6:.0f} MB without, {grown / 1e6:+.0f} MB with them: {grown / clients / 1e3:.0f} kB each"
    )
    print(f"connections to Redis: {redis_before} before, {connections(service)} with them")
    busy, began = sum(service.api.cpu_times()[:2]), time.perf_counter()
    await asyncio.sleep(idle_s)
    share = (sum(service.api.cpu_times()[:2]) - busy) / (time.perf_counter() - began)
    print(f"CPU of the API while nothing happens: {100 * share:.1f} % of a core")
    canceled_at = time.perf_counter()
    await asyncio.to_thread(lambda: [service.state.cancel(generation.id) for generation in generations])
    async with asyncio.timeout(WAIT_S):
        heard = await asyncio.gather(*(client.completed for client in opened))
    delays = [1e3 * (at - canceled_at) for at in heard]
    cuts = statistics.quantiles(delays, n=100, method="inclusive")
    print(f"ms until all knew of the end: p50 {cuts[49]:.0f}, p99 {cuts[98]:.0f}, last {max(delays):.0f}")


def main() -> None:
    """Print figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--generations", type=int, default=1)
    parser.add_argument("--idle-seconds", type=float, default=30)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    settings = {"rate_per_s": 0, "max_inflight": 0, "max_queued": 10**9, "max_backlog_s": 1e12}
    with running(workers=0, **settings) as service:
        generations = []
        for n in range(options.generations):
            if n % 500 == 0:
                service.state.announce(model_info(MANIFEST))
            generations.append(Generation.model_validate_json(service.post(BODY)))
        asyncio.run(follow(service, generations, options.clients, options.idle_seconds))


if __name__ == "__main__":
    main()
