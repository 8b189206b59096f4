"""What does the service cost with a real bundle on a CPU? The pipeline alone at its best batch size, and our worker, saturated.

python -m benchmarks.serving.bundle --jobs 16
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

from clipsynth.jobs.queue import connect, enqueue
from clipsynth.jobs.store import JobStore, new_id
from clipsynth.schemas.generation import JobPayload
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.processes import let_threads_sleep
from clipsynth.settings import Settings
from models.bundle import Manifest

PROMPT = "a dog barking"
BATCHES = (1, 2, 4)


def raw(model: Path, jobs: int) -> dict[int, float]:
    """Return sounds per second of the pipeline alone, WAV included, by batch size."""
    from worker.main import load

    predictor = load(Settings(model=model, device="cpu"))
    rates = {}
    for batch in BATCHES:
        started = time.perf_counter()
        for _ in range(jobs // batch):
            for waveform in predictor.pipeline(PROMPT, num_waveforms_per_prompt=batch).audios:
                predictor.encode_response(waveform)
        rates[batch] = jobs // batch * batch / (time.perf_counter() - started)
    return rates


def worker(redis_url: str, data_dir: Path, model: Path) -> None:
    """Be our worker."""
    from worker.main import main as run

    run(Settings(redis_url=redis_url, data_dir=data_dir, model=model, device="cpu"))


def ours(model: Path, jobs: int) -> float:
    """Return sounds per second through Redis and our worker, from when it takes the first."""
    manifest = Manifest.read(model)
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        server = EmbeddedRedis(Path(folder))
        settings = Settings(redis_url=server.url, data_dir=Path(folder))
        redis = connect(server.url)
        state = JobStore.from_settings(redis, settings)
        process = multiprocessing.get_context("spawn").Process(
            target=worker, args=(server.url, Path(folder), model), daemon=True
        )
        try:
            process.start()
            while not state.models() or state.models()[0].status != "ready":
                time.sleep(0.1)
            started = time.perf_counter()
            for seed in range(jobs):
                payload = JobPayload(
                    model=manifest.name,
                    prompt=PROMPT,
                    image_key=None,
                    negative_prompt=None,
                    seed=seed,
                    num_inference_steps=manifest.num_inference_steps,
                    guidance_scale=manifest.guidance_scale,
                    duration_s=manifest.duration_s,
                    num_outputs=1,
                    output_formats=["wav"],
                )
                enqueue(redis, state, new_id(), payload, settings)
            while sum(state.ended().values()) < jobs:
                time.sleep(0.01)
            return jobs / (time.perf_counter() - started)
        finally:
            process.terminate()
            process.join()
            redis.close()
            server.stop()


def main() -> None:
    """Print sounds per second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--model", type=Path, default=Settings().model)
    options = parser.parse_args()
    let_threads_sleep()
    through = ours(options.model, options.jobs)
    rates = raw(options.model, options.jobs)
    best = max(rates.values())
    print("raw, by batch size: " + ", ".join(f"{n}: {rate:.2f}/s" for n, rate in rates.items()))
    print(f"ours: {through:.2f}/s = {through / best:.2f} of raw at its best")


if __name__ == "__main__":
    main()
