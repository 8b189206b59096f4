"""Make the benchmarks' requests and their times; imports only the standard library."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipsynth.schemas.generation import JobPayload

# The simulated accelerator: one call of the network takes STEP_S for up to ROWS rows.
STEP_S = 0.02
ROWS = 32
MODEL = "simulated"
# A prompt that kills the worker's process at its first step.
POISON = "poison"
LOADS = ("uniform", "mixed")


@dataclass(frozen=True)
class SoundRequest:
    """The body of a request. A guided request takes two rows of each step."""

    num_inference_steps: int
    duration_s: float
    guidance_scale: float
    seed: int = 0
    prompt: str = "rain"

    @property
    def rows(self) -> int:
        return 2 if self.guidance_scale > 1 else 1


def requests(load: str, repetition: int = 0) -> Iterator[SoundRequest]:
    """Yield the requests of a load without end.

    Args:
        load: `uniform` is 8 steps and 1 s; `mixed` is 8 to 50 steps and 2 to 5 s, half of them guided.
        repetition: seed of the draws.

    Raises:
        ValueError: unknown load.
    """
    if load not in LOADS:
        raise ValueError(f"load {load!r} is none of {', '.join(LOADS)}")
    draw = random.Random(f"{load} {repetition}")
    for seed in itertools.count():
        if load == "uniform":
            yield SoundRequest(8, 1.0, 1.0, seed)
        else:
            steps, duration_s = draw.randint(8, 50), draw.choice([2.0, 3.0, 4.0, 5.0])
            yield SoundRequest(steps, duration_s, draw.choice([1.0, 3.0]), seed)


def poisson(per_s: float, seconds: float, repetition: int = 0) -> list[float]:
    """Return the arrival times of a Poisson process; another rate stretches the same process."""
    draw = random.Random(f"arrivals {repetition}")
    times: list[float] = []
    at = draw.expovariate(1.0) / per_s
    while at < seconds:
        times.append(at)
        at += draw.expovariate(1.0) / per_s
    return times


def call_s(rows: int, step_s: float = STEP_S, at_once: int = ROWS) -> float:
    """Return the seconds of one call of the simulated network on `rows` rows."""
    return step_s * math.ceil(rows / at_once)


def payload(**fields: object) -> JobPayload:
    """Return a job of 8 steps and 1 s without guidance, with `fields` replaced."""
    from clipsynth.schemas.generation import JobPayload

    defaults: dict[str, object] = {
        "model": MODEL, "prompt": "rain", "image_key": None, "negative_prompt": None, "seed": 0,
        "num_inference_steps": 8, "guidance_scale": 1.0, "duration_s": 1.0, "num_outputs": 1,
        "output_formats": ["wav"],
    }  # fmt: skip
    return JobPayload(**defaults | fields)
