"""What does ten times more than the worker can do make of the service? Open-loop requests at a constant rate.

    python -m benchmarks.serving.overload --seconds 60

The worker (simulated) takes `CAPACITY` generations per second. The API has a core of its own where there are two; Redis, the worker and this client
share the others. Every answer is timed from when its request was due, so that a slow answer is not hidden by its client waiting, and so that the
client's own lateness, which is printed too, is part of the figure. Ends with code 1 unless every accepted job succeeds, and every other answer is
429 with Retry-After.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import statistics
import sys
from dataclasses import dataclass

from benchmarks.serving.service import Service, running
from clipsynth.services.processes import wait_until

STEP_S, STEPS, ROWS = 0.1, 16, 32  # of the simulated model
CAPACITY = ROWS / (STEPS * STEP_S)
MAX_QUEUED = 200  # bound of the queue: ten seconds of work
BODY = json.dumps(
    {"prompt": "rain", "duration_s": 1.0, "num_inference_steps": STEPS, "guidance_scale": 1.0}
).encode()
END_S = 120.0
IDLE_S = 2.0  # after which a connection is not used again: uvicorn closes it after 5 s, maybe just then

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Answer:
    """One request: seconds are from when it was due; `late_s` of them the client took to begin."""

    status: int
    seconds: float
    late_s: float
    generation_id: str
    retry_after: bool


class Client:
    """Asks over connections that stay open, as many as are needed at a time. Not httpx, which takes more of a core than the service does."""

    def __init__(self, port: int, token: str | None = None) -> None:
        self.port, self.idle = port, list[tuple[float, Connection]]()
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        head = f"POST /v1/generations HTTP/1.1\r\nHost: localhost\r\n{authorization}Content-Type: application/json\r\n"
        self.request = f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY

    async def _connection(self, now: float) -> Connection:
        while self.idle:
            since, connection = self.idle.pop()
            if now - since < IDLE_S:
                return connection
            connection[1].close()
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, due: float) -> Answer:
        loop = asyncio.get_running_loop()
        late_s = loop.time() - due
        reader, writer = connection = await self._connection(loop.time())
        writer.write(self.request)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        body = await reader.readexactly(int(headers["content-length"]))
        ended = loop.time()
        self.idle.append((ended, connection))
        status = int(first.split()[1])
        generation_id = json.loads(body)["id"] if status == 202 else ""
        return Answer(status, ended - due, late_s, generation_id, "retry-after" in headers)


async def offer(service: Service, *, rate: float, seconds: float, token: str | None = None) -> list[Answer]:
    """Send requests when they are due, whatever is under way."""
    loop = asyncio.get_running_loop()
    client = Client(service.port, token)
    asked = []
    started = loop.time()
    for n in range(round(rate * seconds)):
        due = started + n / rate
        await asyncio.sleep(max(0.0, due - loop.time()))
        asked.append(asyncio.create_task(client.ask(due)))
    return await asyncio.gather(*asked)


def percentiles(values: list[float]) -> str:
    """Return p50, p99 and the greatest, in ms."""
    if len(values) < 2:
        return "none"
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return f"p50 {1e3 * cuts[49]:.1f}, p99 {1e3 * cuts[98]:.1f}, greatest {1e3 * max(values):.1f}"


def all_ended(service: Service, generations: int) -> bool:
    """Wait until so many have ended since Redis was set up; return whether they have."""
    return wait_until(lambda: sum(service.state.ended().values()) >= generations, timeout_s=END_S)


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=10, help="of what the worker can do")
    options = parser.parse_args()
    core, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or {core})  # Redis and the worker inherit it
    with running(step_s=STEP_S, rate_per_s=0, max_queued=MAX_QUEUED, api_cores={core}) as service:
        warm_up = asyncio.run(offer(service, rate=CAPACITY, seconds=3))
        all_ended(service, sum(answer.status == 202 for answer in warm_up))
        ended_before = sum(service.state.ended().values())
        before, busy = service.api_rss(), sum(service.api.cpu_times()[:2])
        answers = asyncio.run(offer(service, rate=options.times * CAPACITY, seconds=options.seconds))
        after, busy = service.api_rss(), sum(service.api.cpu_times()[:2]) - busy
        accepted = [answer.generation_id for answer in answers if answer.status == 202]
        all_ended(service, ended_before + len(accepted))
        ends = collections.Counter(service.state.get(generation_id).status for generation_id in accepted)
    statuses = collections.Counter(answer.status for answer in answers)
    refused = [answer for answer in answers if answer.status == 429]
    silent = sum(not answer.retry_after for answer in refused)
    print(f"{1 + len(others)} cores, of which the API has one and {len(others)} the rest")
    print(
        f"{len(answers)} requests, {options.times * CAPACITY:.0f}/s, of which the worker can do {CAPACITY:.0f}/s: {dict(statuses)}"
    )
    print(f"accepted: {dict(ends)}")
    print(f"429 without Retry-After: {silent}")
    print(f"ms until refused: {percentiles([answer.seconds for answer in refused])}")
    print(f"ms until accepted: {percentiles([a.seconds for a in answers if a.status == 202])}")
    print(f"ms that the client was late: {percentiles([answer.late_s for answer in answers])}")
    print(f"CPU of the API: {100 * busy / options.seconds:.0f} % of a core")
    print(f"memory of the API: {before / 1e6:.0f} MB, {(after - before) / 1e6:+.1f} MB at the end")
    return int(bool(silent) or ends != {"succeeded": len(accepted)} or set(statuses) != {202, 429})


if __name__ == "__main__":
    sys.exit(main())
