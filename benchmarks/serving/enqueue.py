"""What do POST and poll cost on one core, against a route of FastAPI that does nothing?

    python -m benchmarks.serving.enqueue --seconds 5

The API runs on one core, the load on the others; no worker runs. The bare route is served by the same uvicorn, takes and returns JSON of the same
size through a pydantic model, and is measured between the others, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import uvicorn
from fastapi import FastAPI

from benchmarks.serving.load import MANIFEST
from benchmarks.serving.service import Service, free_port, running
from clipsynth.schemas.generation import Generation, GenerationRequest
from clipsynth.services.processes import wait_until
from worker.main import model_info

CLIENTS = 8
ROUNDS = 3
BODY = b'{"prompt": "rain", "seed": 7, "duration_s": 1.0}'


def bare(port: int, resource: bytes) -> None:
    """Serve one route that takes a request and returns a resource, and does nothing."""
    app = FastAPI()
    generation = Generation.model_validate_json(resource)

    @app.post("/", response_model=Generation, status_code=202)
    async def post(_: GenerationRequest) -> Generation:
        return generation

    @app.get("/", response_model=Generation)
    async def get() -> Generation:
        return generation

    uvicorn.run(app, port=port, log_level="warning", http="h11", ws="none")


async def rate(port: int, method: str, path: str, body: bytes, seconds: float) -> float:
    """Return answers per second to `CLIENTS` that ask one after the other on connections that stay open."""
    request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n".encode()
    if body:
        request += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n".encode()
    request += b"\r\n" + body
    until = time.perf_counter() + seconds

    async def client() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answered = 0
        while time.perf_counter() < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if head[9:10] != b"2":
                raise RuntimeError(f"answered with {head!r}")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            answered += 1
        writer.close()
        return answered

    started = time.perf_counter()
    answered = sum(await asyncio.gather(*(client() for _ in range(CLIENTS))))
    return answered / (time.perf_counter() - started)


def measure(service: Service, bare_port: int, path: str, seconds: float) -> dict[str, float]:
    """Return the median rate of each route, measured in turn."""
    asked: dict[str, Callable[[], Awaitable[float]]] = {
        "bare POST": lambda: rate(bare_port, "POST", "/", BODY, seconds),
        "POST": lambda: rate(service.port, "POST", "/v1/generations", BODY, seconds),
        "bare GET": lambda: rate(bare_port, "GET", "/", b"", seconds),
        "poll": lambda: rate(service.port, "GET", path, b"", seconds),
    }
    rates: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(ROUNDS):
        service.state.announce(model_info(MANIFEST))  # it is forgotten after a while
        for name, ask in asked.items():
            rates[name].append(asyncio.run(ask()))  # type: ignore[arg-type]
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    """Print requests per second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--bare", nargs=2, metavar=("PORT", "RESOURCE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(int(options.bare[0]), Path(options.bare[1]).read_bytes())
        return
    core, *others = sorted(os.sched_getaffinity(0))
    settings = {"rate_per_s": 0, "max_inflight": 0, "max_queued": 10**9, "max_backlog_s": 1e12}
    with running(workers=0, api_cores={core}, **settings) as service, tempfile.TemporaryDirectory() as folder:
        os.sched_setaffinity(0, others or {core})
        service.state.announce(model_info(MANIFEST))
        made = service.post(BODY)
        resource = Path(folder) / "resource.json"
        resource.write_bytes(made)
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.serving.enqueue", "--bare", str(port), str(resource)]
        process = subprocess.Popen(command)
        try:
            psutil.Process(process.pid).cpu_affinity([core])
            wait_until(lambda: bool(psutil.Process(process.pid).net_connections()), timeout_s=30)
            path = f"/v1/generations/{Generation.model_validate_json(made).id}"
            rates = measure(service, port, path, options.seconds)
        finally:
            process.terminate()
            process.wait()
    for name, value in rates.items():
        print(f"{name}: {value:.0f}/s")
    for name, against in (("POST", "bare POST"), ("poll", "bare GET")):
        print(f"{name} to {against}: {rates[name] / rates[against]:.2f}")


if __name__ == "__main__":
    main()
