"""The scenario race: this service, another server or the bare sampler under the same load.

Another server runs in an environment of its own, made from requirements/NAME.txt. It imports this module to
serve the simulated model, so only the standard library is imported at the top.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load.workload import ROWS, STEP_S, SoundRequest, call_s, poisson, requests

# Set in the other server's processes alone.
OPTIONS: dict[str, Any] = json.loads(os.environ.get("RACE_OPTIONS", "{}"))
if not OPTIONS:
    import psutil

    from benchmarks.load.client import HttpClient, measure
    from benchmarks.load.service import START_S, UNLIMITED, free_port, running, simulated_worker
    from benchmarks.load.worker import raw
    from clipsynth.services.processes import wait_until

# Found by trying: requests in a batch, and how long LitServe waits for more.
BATCH = {"uniform": 32, "mixed": 128}
WARM_UP_S = 4.0
WAIT_S = {"uniform": 0.0, "mixed": 0.1}


def groups(batch: Sequence[SoundRequest]) -> list[list[SoundRequest]]:
    """Sort a batch by steps and cut it into groups of at most `ROWS` rows."""
    found: list[list[SoundRequest]] = [[]]
    for request in sorted(batch, key=lambda request: request.num_inference_steps):
        if found[-1] and sum(r.rows for r in found[-1]) + request.rows > ROWS:
            found.append([])
        found[-1].append(request)
    return found


def group_s(group: Sequence[SoundRequest]) -> float:
    """Return the seconds of a group that starts and ends together; a row that is done leaves earlier."""
    longest = max(request.num_inference_steps for request in group)
    return sum(call_s(sum(r.rows for r in group if r.num_inference_steps > step)) for step in range(longest))


def simulated(batch: Sequence[dict[str, Any]]) -> list[bytes]:
    """Sleep as long as the simulated accelerator takes for a batch, and return its sounds: silence."""
    wanted = [SoundRequest(**fields) for fields in batch]
    time.sleep(sum(map(group_s, groups(wanted))))
    return [bytes(4 * round(request.duration_s * 100)) for request in wanted]


# both servers import their class by its name in other processes
if OPTIONS.get("system") == "litserve":
    import litserve
    from fastapi import Response

    class LitServeApi(litserve.LitAPI):
        """Batches of the requests that came while the last one ran."""

        def setup(self, device: str) -> None: ...

        def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return list(inputs)

        def predict(self, batch: list[dict[str, Any]]) -> list[bytes]:
            return simulated(batch)

        def unbatch(self, output: list[bytes]) -> list[bytes]:
            return output

        def encode_response(self, output: bytes) -> Response:
            return Response(output, media_type="audio/wav")


if OPTIONS.get("system") == "bentoml":
    import bentoml

    @bentoml.service(workers=1, traffic={"timeout": 600, "max_concurrency": 1000})
    class BentoServer:
        """One worker with adaptive batching."""

        @bentoml.api(batchable=True, max_batch_size=OPTIONS["batch"], max_latency_ms=60_000, route="/predict")
        def predict(self, batch: list[dict[str, Any]]) -> list[str]:
            return [base64.b64encode(sound).decode() for sound in simulated(batch)]


@contextlib.contextmanager
def other_server(system: str, load: str, programs: Path) -> Iterator[tuple[HttpClient, Callable[[], float]]]:
    """Run LitServe or BentoML; yield a client, and a function that returns the CPU seconds used."""
    port, module = free_port(), "benchmarks.load.race"
    command = {
        "litserve": ["python", "-m", module],
        "bentoml": ["bentoml", "serve", f"{module}:BentoServer", "--port", str(port), "--host", "127.0.0.1"],
    }[system]
    options = {"system": system, "port": port, "batch": BATCH[load], "wait_s": WAIT_S[load]}
    variables = {"RACE_OPTIONS": json.dumps(options), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen(
        [programs / command[0], *command[1:]],
        env=os.environ | variables | {"BENTOML_DO_NOT_TRACK": "True"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )

    def cpu_s() -> float:
        main = psutil.Process(process.pid)
        return sum(sum(p.cpu_times()[:2]) for p in (main, *main.children(recursive=True)))

    async def first_sound() -> bool:
        client = HttpClient(port, "/predict")
        with contextlib.suppress(OSError, EOFError):
            return (await client.ask(body_of(system, next(requests(load))))).status == 200
        return False

    try:
        assert wait_until(lambda: asyncio.run(first_sound()), timeout_s=START_S), f"{system} does not start"
        yield HttpClient(port, "/predict"), cpu_s
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)


@contextlib.contextmanager
def our_server() -> Iterator[tuple[HttpClient, Callable[[], float]]]:
    """Run API, worker and Redis (`appendfsync always`); yield as `other_server` does."""
    with running(simulated_worker(STEP_S), **UNLIMITED) as service:
        client = HttpClient(service.port, "/v1/generations", Prefer="wait=60", Accept="audio/wav")
        yield client, lambda: sum(map(service.cpu_s, service.processes))


def body_of(system: str, request: SoundRequest) -> bytes:
    """Return the body that asks a server for a sound."""
    fields = dataclasses.asdict(request)
    return json.dumps({"batch": [fields]} if system == "bentoml" else fields).encode()


def race(
    system: str = "ours", load: str = "mixed", per_s: float = 0.0, seconds: float = 25.0,
    programs: Path = Path(),
) -> None:  # fmt: skip
    """Measure one server under a load of simulated sounds, for a comparison with others.

    `--system` is ours, raw (the sampler in a loop), or litserve or bentoml, whose environment's `bin` folder
    is `--programs`. `--per-s` is the rate of Poisson arrivals; 0 keeps 128 requests in flight.
    """
    if system == "raw":
        print(f"raw, {load}: {raw(load, ROWS, seconds)[0]:.1f} sounds/s")
        return
    with our_server() if system == "ours" else other_server(system, load, programs) as (client, cpu_s):

        async def send(request: SoundRequest) -> bool:
            return (await client.ask(body_of(system, request))).status == 200

        cpu, times = cpu_s(), poisson(per_s, WARM_UP_S + seconds) if per_s else None
        window = {"warm_up_s": WARM_UP_S, "seconds": seconds, "times": times, "in_flight": 128}
        found = measure(send, requests(load), **window)
        cpu_ms = 1e3 * (cpu_s() - cpu) / max(1, found.answered)
    arrivals = f"{per_s:g} a second" if per_s else "saturated"
    print(
        f"{system}, {load}, {arrivals}: {found.throughput:.1f} sounds/s, p50 {found.p50_s:.2f} s, "
        f"p95 {found.p95_s:.2f} s, {cpu_ms:.1f} ms of CPU a sound, {found.unanswered} unanswered"
    )


if __name__ == "__main__":
    api = LitServeApi(max_batch_size=OPTIONS["batch"], batch_timeout=OPTIONS["wait_s"])
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    quiet = {"log_level": "warning", "generate_client_file": False, "access_log": False}
    server.run(host="127.0.0.1", port=OPTIONS["port"], **quiet)
