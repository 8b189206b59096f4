"""Measure the worker without HTTP: the cost of the queue, and whether a replay is exact."""

from __future__ import annotations

import dataclasses
import itertools
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.load.service import ServiceProcesses, simulated_worker
from benchmarks.load.simulated import TOKENS, SimulatedPredictor
from benchmarks.load.workload import STEP_S, payload, requests
from clipsynth.jobs.store import JobStore, new_id
from clipsynth.schemas.generation import JobPayload, ReplayToken
from clipsynth.schemas.prompts import StoredPrompt
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from clipsynth.storage import Storage
from models.conditioning.prompts import COMPOSITIONS
from models.sampler import SamplerRow, advance
from tests.support.tiny import build_tiny_pipeline
from worker.engine import Engine, SamplingRequest, weight
from worker.job_runner import JobRunner
from worker.predictor import Predictor

PROMPTS = ("rain", "a dog barking", "a cat and a bell", "wind in the trees", "an old engine", "applause")
# Largest difference of a replay, of full scale, for an untrained network; a trained one keeps to 2e-3.
TOLERANCE = 1e-2


def raw(load: str, rows: int, seconds: float) -> tuple[float, float]:
    """Return sounds per second, and CPU ms a sound, of the sampler alone in a loop, always full."""
    model = SimulatedPredictor(STEP_S, rows)
    coming = (row for request in requests(load) for row in model.rows(payload(**dataclasses.asdict(request))))
    running, waiting = [], next(coming)
    done, cpu, started = 0, time.process_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        while weight([*running, waiting]) <= rows * TOKENS:
            running.append(waiting)
            waiting = next(coming)
        advance(running, model.velocity)
        done += sum(row.done for row in running)
        running = [row for row in running if not row.done]
    return done / elapsed, 1e3 * (time.process_time() - cpu) / done


def through_redis(
    worker: Sequence[str], jobs: Iterable[JobPayload], seconds: float, fsync: str
) -> tuple[float, float]:
    """Return jobs per second that a worker process ends, and its CPU ms a job.

    Args:
        worker: arguments of Python.
        jobs: queued before the worker starts.
        fsync: Redis' `appendfsync`.
    """
    with ServiceProcesses() as service:
        service.redis.config_set("appendfsync", "no")
        for job in jobs:
            service.state.submit(new_id(), job)
        service.redis.config_set("appendfsync", fsync)
        service.start("worker", *worker)
        assert wait_until(lambda: service.ended() > 0, timeout_s=120), service.log.read_text()
        time.sleep(3.0)
        ended, cpu, started = service.ended(), service.cpu_s("worker"), time.perf_counter()
        time.sleep(seconds)
        ended, cpu = service.ended() - ended, service.cpu_s("worker") - cpu
        rate = ended / (time.perf_counter() - started)
        service.processes["worker"].kill()
        return rate, 1e3 * cpu / max(1, ended)


def throughput(
    load: list[str] = ("uniform", "mixed"), rows: list[int] = (8, 32), seconds: float = 10.0,
    fsync: list[str] = ("always",),
) -> None:  # fmt: skip
    """Compare jobs per second through Redis with the sampler alone, both saturated.

    `--rows` is how many rows a simulated step takes; `--fsync` Redis' `appendfsync`: always, everysec or no.
    """
    for kind, count in itertools.product(load, rows):
        ceiling, model_cpu = raw(kind, count, seconds)
        print(f"{kind}, {count} rows: raw {ceiling:.1f} jobs/s, CPU {model_cpu:.2f} ms a job", flush=True)
        for mode in fsync:
            enough = round(1.5 * ceiling * (seconds + 5))
            jobs = (payload(**dataclasses.asdict(r)) for r in itertools.islice(requests(kind), enough))
            ours, cpu = through_redis(simulated_worker(STEP_S, count), jobs, seconds, mode)
            beyond = f"CPU {cpu:.2f} ms a job, {cpu - model_cpu:.2f} beyond the model"
            print(f"  ours, {mode}: {ours:.1f} jobs/s = {ours / ceiling:.2f} of raw, {beyond}", flush=True)


class ReplayTrial:
    """A model, and jobs that are run together; of each sound the replay token and the waveform are kept."""

    def __init__(self, predictor: Predictor, folder: Path, seed: int) -> None:
        self.predictor, self.draw = predictor, random.Random(seed)
        self.jobs = JobRunner(predictor, cast(JobStore, None), Storage(folder.as_uri()), max_attempts=1)

    def draw_payload(self) -> JobPayload:
        draw = self.draw
        guidance_scale = draw.choice([1.0, 1.0, 2.5, 8.0])
        texts = draw.sample(PROMPTS, draw.choice([1, 1, 2, 3]))
        return self.payload(
            prompt=None,
            prompts=[StoredPrompt(text=text, weight=draw.choice([0.5, 1.0, 2.0])) for text in texts],
            composition=draw.choice(COMPOSITIONS),
            negative_prompt="silence" if guidance_scale > 1 and draw.random() < 0.3 else None,
            seed=draw.randrange(2**32 - 8),
            num_inference_steps=draw.randint(2, 16),
            guidance_scale=guidance_scale,
            duration_s=draw.choice([0.5, 0.7, 1.0, 1.6, 2.5]),
            num_outputs=draw.choice([1, 1, 1, 2, 3]),
        )

    def payload(self, **fields: Any) -> JobPayload:
        return payload(**{"model": self.predictor.manifest.name} | fields)

    def again(self, token: str) -> JobPayload:
        """Return the job that a replay token stands for."""
        fields = ReplayToken.read(token).model_dump()
        return self.payload(**{k: v for k, v in fields.items() if k in JobPayload.model_fields})

    def make(self, payloads: list[JobPayload], at_a_time: int = 12) -> list[tuple[str, np.ndarray]]:
        """Return (token, waveform (T,)) of every output, in the order of the jobs."""
        engine = Engine(self.predictor, limit=self.draw.randint(2, 16) * self.predictor.num_tokens(1.0))
        engine.start()
        tickets = [self._ticket(n, job) for n, job in enumerate(payloads)]
        for n, ticket in enumerate(tickets):
            if n >= at_a_time:
                engine.ended.get()
            engine.submit(ticket)
        for _ in range(min(at_a_time, len(tickets))):
            engine.ended.get()
        engine.stop()
        assert not any(ticket.error for ticket in tickets)
        return [ticket.results[n] for ticket in tickets for n in range(ticket.num_rows)]

    def _ticket(self, number: int, job: JobPayload) -> SamplingRequest:
        ticket = self.jobs.request(f"gen_{number:026x}", job)
        deliver = ticket.deliver
        ticket.deliver = lambda n, waveform: (deliver(n, waveform)[0].recipe, waveform)
        return ticket

    def beside_others(self, first: JobPayload) -> np.ndarray:
        """Return the waveform of a job as the first of four rows of its own shape."""
        others = [first.model_copy(update={"seed": self.draw.randrange(2**32)}) for _ in range(3)]

        def rows() -> list[SamplerRow]:
            return [self.predictor.rows(job, {})[0] for job in (first, *others)]

        engine = Engine(self.predictor, limit=10**9)
        tokens = self.predictor.num_tokens(first.duration_s)
        passes = sum(first.branches(self.predictor.distilled_guidance_range))
        ticket = SamplingRequest(rows, lambda _, waveform: waveform, 4, tokens, first.duration_s, passes)
        engine.submit(ticket)
        while not ticket.ended:
            engine.turn()
        engine.stop()
        return cast(np.ndarray, ticket.results[0])


def replay(count: int = 200, model: Path | None = None, seed: int = 0) -> None:
    """Make `count` sounds in random batches, and again by their replay tokens in other batches.

    Fails where two waveforms differ by more than rounding explains, or bytes of a job that runs alone twice,
    or of a row beside others of its shape. `--model` is a bundle folder; by default a tiny model is built.
    """
    tiny = None if model else Predictor(build_tiny_pipeline())
    predictor = tiny or Predictor.setup(Settings(model=model, device="cpu"))
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        trial = ReplayTrial(predictor, Path(folder), seed)
        first: list[tuple[str, np.ndarray]] = []
        while len(first) < count:
            first += trial.make([trial.draw_payload() for _ in range(20)])
        made = trial.draw.sample(first, count)
        replayed = trial.make([trial.again(token) for token, _ in made])
        differences = [np.abs(a - b).max() for (_, a), (_, b) in zip(made, replayed, strict=True)]
        peak = max(np.abs(a).max() for _, a in made)
        same_token = all(a == b for (a, _), (b, _) in zip(made, replayed, strict=True))
        few = [trial.again(token) for token, _ in made[:: max(1, len(made) // 20)]]
        alone = [[trial.make([job], 1)[0][1].tobytes() for _ in range(2)] for job in few]
        shape = [[trial.beside_others(job).tobytes() for _ in range(2)] for job in few]
    print(f"largest difference of {count} sounds {max(differences):.1e}, largest sample {peak:.2f}")
    print(f"equal: {sum(d == 0 for d in differences)}; the same tokens again: {same_token}")
    bytes_equal = [sum(a == b for a, b in pairs) for pairs in (alone, shape)]
    print(
        f"of {len(few)}, equal bytes: alone twice {bytes_equal[0]}, in a batch of one shape {bytes_equal[1]}"
    )
    raise SystemExit(max(differences) > TOLERANCE or not same_token or bytes_equal != [len(few)] * 2)
