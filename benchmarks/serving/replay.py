"""Does a recipe make the same sound again, whatever runs beside it? Sounds made in random company, and again by their recipes in other company.

    python -m benchmarks.serving.replay                              # 200 recipes, a tiny model of the true classes
    python -m benchmarks.serving.replay --recipes 20 --model checkpoints/demo

Jobs differ in prompts and how those are composed, negative prompt, steps, guidance, duration and number of outputs; the batch's limit is drawn anew for each round.
Prints the largest difference of two waveforms; ends with code 1 where it is above 1e-4, or where bytes differ that must not: a job alone
twice, and rows of one padded shape whose neighbours differ.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np

from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import JobPayload
from clipsynth.schemas.prompts import StoredPrompt
from clipsynth.schemas.replay_token import ReplayToken
from clipsynth.services.processes import let_threads_sleep
from clipsynth.settings import Settings
from clipsynth.storage import Storage
from models.conditioning.prompts import COMPOSITIONS
from models.sampler import SamplerRow
from worker.engine import Engine, SamplingRequest
from worker.job_runner import JobRunner
from worker.predictor import Predictor

PROMPTS = ("rain", "a dog barking", "a cat and a bell", "wind in the trees", "an old engine", "applause")
DURATIONS_S = (0.5, 0.7, 1.0, 1.6, 2.5)
AT_A_TIME = 12  # jobs
TOLERANCE = 1e-2  # of full scale, for an untrained network, whose mels are full of tones; a trained one keeps to 2e-3 (docs/api.md)


class Trial:
    """A model, and jobs that are run together; of each sound the recipe and the waveform are kept."""

    def __init__(self, predictor: Predictor, folder: Path, seed: int) -> None:
        self.predictor, self.draw = predictor, random.Random(seed)
        no_redis = cast(JobStore, None)
        self.jobs = JobRunner(predictor, no_redis, Storage(folder.as_uri()), max_attempts=1)

    def wish(self) -> JobPayload:
        """Return a random request."""
        guidance_scale = self.draw.choice([1.0, 1.0, 2.5, 8.0])
        texts = self.draw.sample(PROMPTS, self.draw.choice([1, 1, 2, 3]))
        return self.payload(
            prompt=None,
            prompts=[StoredPrompt(text=text, weight=self.draw.choice([0.5, 1.0, 2.0])) for text in texts],
            composition=self.draw.choice(COMPOSITIONS),
            negative_prompt="silence" if guidance_scale > 1 and self.draw.random() < 0.3 else None,
            seed=self.draw.randrange(2**32 - 8),
            num_inference_steps=self.draw.randint(2, 16),
            guidance_scale=guidance_scale,
            duration_s=self.draw.choice(DURATIONS_S),
            num_outputs=self.draw.choice([1, 1, 1, 2, 3]),
        )

    def payload(self, **fields: Any) -> JobPayload:
        defaults = {"image_key": None, "num_outputs": 1, "output_formats": ["wav"]}
        return JobPayload(**{"model": self.predictor.manifest.name} | defaults | fields)

    def again(self, token: str) -> JobPayload:
        """Return the request that a recipe stands for."""
        fields = ReplayToken.read(token).model_dump()
        return self.payload(**{k: v for k, v in fields.items() if k in JobPayload.model_fields})

    def make(self, payloads: list[JobPayload], at_a_time: int) -> list[tuple[str, np.ndarray]]:
        """Return (recipe, waveform (T,)) of every output, in the order of the payloads."""
        engine = Engine(self.predictor, limit=self.draw.randint(2, 16) * self.predictor.num_tokens(1.0))
        engine.start()
        tickets = [self._ticket(n, payload) for n, payload in enumerate(payloads)]
        for n, ticket in enumerate(tickets):
            if n >= at_a_time:
                engine.ended.get()
            engine.submit(ticket)
        for _ in range(min(at_a_time, len(tickets))):
            engine.ended.get()
        engine.stop()
        assert not any(ticket.error for ticket in tickets)
        return [ticket.results[n] for ticket in tickets for n in range(ticket.num_rows)]

    def _ticket(self, number: int, payload: JobPayload) -> SamplingRequest:
        ticket = self.jobs.ticket(f"gen_{number:026x}", payload)
        deliver = ticket.deliver
        ticket.deliver = lambda n, waveform: (deliver(n, waveform)[0].recipe, waveform)
        return ticket

    def beside_others(self, first: JobPayload) -> np.ndarray:
        """Return the waveform of a request as the first of four rows of its own shape."""
        others = [first.model_copy(update={"seed": self.draw.randrange(2**32)}) for _ in range(3)]

        def rows() -> list[SamplerRow]:
            return [self.predictor.rows(payload, {})[0] for payload in (first, *others)]

        engine = Engine(self.predictor, limit=10**9)
        tokens = self.predictor.num_tokens(first.duration_s)
        passes = sum(first.branches(self.predictor.distilled_guidance_range))
        ticket = SamplingRequest(rows, lambda _, waveform: waveform, 4, tokens, first.duration_s, passes)
        engine.submit(ticket)
        while not ticket.ended:
            engine.turn()
        engine.stop()
        return cast(np.ndarray, ticket.results[0])


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", type=int, default=200)
    parser.add_argument("--model", type=Path, help="bundle folder; a tiny one by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    let_threads_sleep()
    if options.model is None:
        from models.tiny import build_tiny_pipeline

        predictor = Predictor(build_tiny_pipeline())
    else:
        predictor = Predictor.setup(Settings(model=options.model, device="cpu"))
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        trial = Trial(predictor, Path(folder), options.seed)
        first: list[tuple[str, np.ndarray]] = []
        while len(first) < options.recipes:
            first += trial.make([trial.wish() for _ in range(20)], AT_A_TIME)
        made = trial.draw.sample(first, options.recipes)
        replayed = trial.make([trial.again(recipe) for recipe, _ in made], AT_A_TIME)
        differences = [np.abs(a - b).max() for (_, a), (_, b) in zip(made, replayed, strict=True)]
        peak = max(np.abs(a).max() for _, a in made)
        same_recipe = all(a == b for (a, _), (b, _) in zip(made, replayed, strict=True))
        few = [trial.again(recipe) for recipe, _ in made[:: max(1, len(made) // 20)]]
        alone = [[trial.make([payload], 1)[0][1].tobytes() for _ in range(2)] for payload in few]
        shape = [[trial.beside_others(payload).tobytes() for _ in range(2)] for payload in few]
    print(f"{len(made)} recipes, largest sample {peak:.2f}: largest difference {max(differences):.1e}")
    print(f"equal to the byte: {sum(d == 0 for d in differences)}; same recipe again: {same_recipe}")
    figures = [sum(a == b for a, b in pairs) for pairs in (alone, shape)]
    print(f"of {len(few)}, alone twice: {figures[0]} equal to the byte; same shape, other rows: {figures[1]}")
    return int(max(differences) > TOLERANCE or not same_recipe or figures != [len(few)] * 2)


if __name__ == "__main__":
    sys.exit(main())
