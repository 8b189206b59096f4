"""Fuzz a running service: broken bytes, then requests derived from its OpenAPI document.

    python -m benchmarks.fuzz                                           # 10,000 and 20,000 requests
    python -m benchmarks.fuzz --requests 500 --seed 3                   # 500 of each
    python -m benchmarks.fuzz --only bytes --first 4711 --requests 1    # repeat one of them

Ends with code 1 on any wrong answer.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Literal

import typer

from benchmarks.fuzz import schema, wire
from benchmarks.load.service import ServiceProcesses, running
from clipsynth.services.processes import wait_until

SCHEMA_REQUESTS, BYTES_REQUESTS = 20_000, 10_000
# Requests before memory is first measured, and between two measurements.
WARM_UP, PART = 500, 1000
MAX_GROWTH_BYTES = 20_000_000
# How long temporary files and child processes may outlive the last request.
LEFT_S = 20
# Not the web server's, which logs an error where the client's bytes end a request early.
OWN_ERROR = re.compile("ERROR[ :](app|clipsynth|worker)")
SETTINGS = {"rate_per_s": 0, "receive_timeout_s": 0.5, "webhook_secret": "whsec_c2VjcmV0c2VjcmV0c2VjcmV0"}


def fuzz_schema(service: ServiceProcesses, requests: int, seed: int) -> bool:
    made, good = schema.run(service, requests=requests, seed=seed)
    print(f"schema: {made} requests, {'all as documented' if good else 'not all as documented'}")
    return good


def fuzz_bytes(service: ServiceProcesses, first: int, requests: int, seed: int) -> bool:
    warm_up = min(WARM_UP, requests // 2)
    answers, wrong = wire.run(service, first=first, requests=warm_up, seed=seed)
    before, sizes = service.rss(), []
    for start in range(warm_up, requests, PART):
        part = min(PART, requests - start)
        more, more_wrong = wire.run(service, first=first + start, requests=part, seed=seed)
        answers.update(more)
        wrong += more_wrong
        sizes.append(service.rss())
    growth = sizes[-1] - before
    if not wait_until(lambda: not left(service), timeout_s=LEFT_S):
        wrong += left(service)
    wrong += [line for line in service.log.read_text().splitlines() if OWN_ERROR.match(line)]
    print(*wrong, sep="\n")
    print("bytes:", ", ".join(f"{count} x {name}" for name, count in sorted(answers.items())))
    print(f"API: {before / 1e6:.0f} MB after {warm_up} requests, {growth / 1e6:+.1f} MB at the end")
    print(f"MB after each {PART}: {', '.join(f'{size / 1e6:.0f}' for size in sizes)}")
    return not wrong and growth <= MAX_GROWTH_BYTES


def left(service: ServiceProcesses) -> list[str]:
    """Return temporary files, and children of the helpers of API and worker, which have none when idle."""
    files = [f"left behind: {path}" for path in Path(os.environ["TMPDIR"]).glob("clipsynth-*")]
    helpers = [child for name in ("api", "worker") for child in service.processes[name].children()]
    return files + [f"left behind: {child}" for helper in helpers for child in helper.children()]


def main(
    requests: int = 0, seed: int = 0, only: Literal["schema", "bytes", "both"] = "both", first: int = 0
) -> None:
    """Fuzz the API with broken bytes and with requests derived from its OpenAPI document.

    `--requests` counts each kind, 10,000 and 20,000 by default; `--first` numbers the first broken one.
    """
    os.environ["CLIPSYNTH_LOG_FORMAT"] = "text"
    started, good = time.monotonic(), True
    print(f"seed {seed}", flush=True)
    for kind in ("bytes", "schema") if only == "both" else (only,):
        with tempfile.TemporaryDirectory() as os.environ["TMPDIR"], running(**SETTINGS) as service:
            if kind == "bytes":
                good &= fuzz_bytes(service, first, requests or BYTES_REQUESTS, seed)
            else:
                good &= fuzz_schema(service, requests or SCHEMA_REQUESTS, seed)
            if not good:
                print(service.log.read_text()[-20_000:])
    print(f"{time.monotonic() - started:.0f} seconds")
    raise SystemExit(not good)


if __name__ == "__main__":
    typer.run(main)
