"""What does ten times more than the worker can do make of the service? Open-loop requests at a constant rate.

    python -m benchmarks.serving.overload --seconds 60

The worker (simulated) takes `CAPACITY` generations per second. Every answer is timed from when its request was due, so that a slow answer is not
hidden by its client waiting. Ends with code 1 unless every accepted job succeeds, and every other answer is 429 with Retry-After.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import statistics
import sys
import time

import httpx

from benchmarks.serving.service import Service, running

STEP_S, STEPS, ROWS = 0.1, 16, 32  # of the simulated model
CAPACITY = ROWS / (STEPS * STEP_S)
MAX_QUEUED = 200  # bound of the queue: ten seconds of work
BODY = {"prompt": "rain", "duration_s": 1.0, "num_inference_steps": STEPS, "guidance_scale": 1.0}
END_S = 120.0


async def offer(service: Service, *, rate: float, seconds: float) -> list[tuple[int, float, str, bool]]:
    """Return status, seconds, generation id and whether Retry-After was there, of each request."""
    loop = asyncio.get_running_loop()
    limits = httpx.Limits(
        max_connections=None, keepalive_expiry=1
    )  # uvicorn closes after 5 s, maybe just then
    async with httpx.AsyncClient(base_url=service.url, limits=limits, timeout=60) as client:

        async def ask(due: float) -> tuple[int, float, str, bool]:
            answer = await client.post("/v1/generations", json=BODY)
            seconds = loop.time() - due
            generation_id = answer.json().get("id", "")
            return answer.status_code, seconds, generation_id, "retry-after" in answer.headers

        asked = []
        started = loop.time()
        for n in range(round(rate * seconds)):
            due = started + n / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            asked.append(asyncio.create_task(ask(due)))
        return await asyncio.gather(*asked)


def percentile(values: list[float], q: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[q - 1] if len(values) > 1 else float("nan")


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=10, help="of what the worker can do")
    options = parser.parse_args()
    with running(step_s=STEP_S, rate_per_s=0, max_queued=MAX_QUEUED) as service:
        asyncio.run(offer(service, rate=CAPACITY, seconds=3))  # warm-up
        before = service.api_rss()
        answers = asyncio.run(offer(service, rate=options.times * CAPACITY, seconds=options.seconds))
        after = service.api_rss()
        accepted = [generation_id for status, _, generation_id, _ in answers if status == 202]
        deadline = time.monotonic() + END_S
        while sum(service.state.ended().values()) < len(accepted) and time.monotonic() < deadline:
            time.sleep(0.1)
        ends = collections.Counter(service.state.get(generation_id).status for generation_id in accepted)
    statuses = collections.Counter(status for status, *_ in answers)
    refused = [seconds for status, seconds, *_ in answers if status == 429]
    taken = [seconds for status, seconds, *_ in answers if status == 202]
    silent = sum(status == 429 and not told for status, *_, told in answers)
    print(
        f"{len(answers)} requests, {options.times * CAPACITY:.0f}/s, of which the worker can do {CAPACITY:.0f}/s: {dict(statuses)}"
    )
    print(f"accepted: {dict(ends)}")
    print(f"429 without Retry-After: {silent}")
    for name, values in (("refused", refused), ("accepted", taken)):
        print(
            f"ms until {name}: p50 {1e3 * percentile(values, 50):.1f}, p99 {1e3 * percentile(values, 99):.1f}"
        )
    print(f"memory of the API: {before / 1e6:.0f} MB, {(after - before) / 1e6:+.1f} MB at the end")
    return int(bool(silent) or ends != {"succeeded": len(accepted)} or set(statuses) != {202, 429})


if __name__ == "__main__":
    sys.exit(main())
