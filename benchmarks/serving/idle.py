"""What does the service add when it has nothing else to do? Latency over HTTP beside the bare pipeline, and the CPU of waiting.

    python -m benchmarks.serving.idle                                 # a tiny model of the true classes
    python -m benchmarks.serving.idle --model checkpoints/demo --requests 10

Redis, API, worker, janitor and webhooks run as `clipsynth serve` has them. One client asks for one sound after the other, in turns with the
pipeline alone in this process (file included): a POST with `Prefer: wait` and `Accept: audio/wav`, over a connection that stays open.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from benchmarks.serving.throughput import cpu_s
from clipsynth.jobs.queue import connect
from clipsynth.jobs.store import JobStore
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.processes import let_threads_sleep, start_child, wait_until
from clipsynth.settings import Settings

PROMPT = "a dog barking"
DURATION_S = 0.5
WARM_UP = 5
PARTS = ("until accepted", "until taken", "until made", "until answered")


def seconds(act: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def free_port() -> int:
    """Return a port that nobody listens to."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def measure(model: Path, folder: Path, *, requests: int, steps: int, idle_s: float, fsync: str) -> None:
    """Print latencies and CPU of a service of its own."""
    from worker.main import load

    server = EmbeddedRedis(folder)
    settings = Settings(redis_url=server.url, data_dir=folder, model=model, device="cpu")
    redis = connect(server.url)
    redis.config_set("appendfsync", fsync)
    port = free_port()
    environment = {
        "CLIPSYNTH_REDIS_URL": server.url,
        "CLIPSYNTH_DATA_DIR": str(folder),
        "CLIPSYNTH_MODEL": str(model),
        "CLIPSYNTH_DEVICE": "cpu",
        "CLIPSYNTH_PORT": str(port),
        "CLIPSYNTH_LOG_FORMAT": "text",
    }
    names = ("worker", "api", "janitor", "webhooks")
    children = {n: start_child([sys.executable, "-m", "clipsynth.cli", n], environment) for n in names}
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    try:
        state = JobStore.from_settings(redis, settings)
        assert wait_until(lambda: [m.status for m in state.models()] == ["ready"], timeout_s=120)
        assert wait_until(lambda: answers(http), timeout_s=30)
        predictor = load(settings)

        parts: list[list[float]] = []

        def through_http() -> None:
            began = time.time()
            body = {"prompt": PROMPT, "seed": 1, "num_inference_steps": steps, "duration_s": DURATION_S}
            headers = {"prefer": "wait=60", "accept": "audio/wav"}
            response = http.post("/v1/generations", json=body, headers=headers)
            ended = time.time()
            assert response.headers["content-type"] == "audio/wav", response.text
            at = state.get(response.headers["location"].rpartition("/")[2])
            parts.append([began, at.created_at, at.started_at or 0.0, at.finished_at or 0.0, ended])

        def bare() -> None:
            waveform = predictor.predict(
                prompt=PROMPT,
                image=None,
                negative_prompt=None,
                seed=1,
                num_inference_steps=steps,
                guidance_scale=predictor.manifest.guidance_scale,
                duration_s=DURATION_S,
            )
            predictor.encode_response(waveform)

        for _ in range(WARM_UP):
            through_http(), bare()
        pids = {name: child.pid for name, child in children.items()} | {"redis": server.process.pid}
        cpu = cpu_s(pids["api"])
        took = np.array([(seconds(through_http), seconds(bare)) for _ in range(requests)])
        p50, p95 = 1e3 * np.quantile(took, [0.5, 0.95], axis=0)
        print(
            f"service: p50 {p50[0]:.1f} ms, p95 {p95[0]:.1f} ms; pipeline alone: {p50[1]:.1f}, {p95[1]:.1f}"
        )
        print(f"added: p50 {p50[0] - p50[1]:.1f} ms, p95 {p95[0] - p95[1]:.1f} ms")
        print(f"CPU of the API: {1e3 * (cpu_s(pids['api']) - cpu) / requests:.1f} ms per request")
        of = 1e3 * np.median(np.diff(parts[-requests:]), axis=0)
        print("of it, p50: " + ", ".join(f"{name} {ms:.1f}" for name, ms in zip(PARTS, of, strict=True)))
        time.sleep(2.0)
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        time.sleep(idle_s)
        for name, pid in pids.items():
            print(f"{name}: {100 * (cpu_s(pid) - before[name]) / idle_s:.2f} % of a core")
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            child.wait()
        http.close()
        redis.close()
        server.stop()


def answers(http: httpx.Client) -> bool:
    """Return whether the API answers."""
    try:
        return http.get("/readyz").is_success
    except httpx.TransportError:
        return False


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="bundle folder; a tiny one by default")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    parser.add_argument("--fsync", choices=("always", "everysec", "no"), default="always")
    options = parser.parse_args()
    let_threads_sleep()
    with tempfile.TemporaryDirectory(prefix="idle-") as folder:
        model = options.model
        if model is None:
            from models.tiny import build_tiny_pipeline

            model = Path(folder) / "tiny"
            build_tiny_pipeline().save_pretrained(model)
        measure(
            model,
            Path(folder),
            requests=options.requests,
            steps=options.steps,
            idle_s=options.idle_seconds,
            fsync=options.fsync,
        )


if __name__ == "__main__":
    main()
