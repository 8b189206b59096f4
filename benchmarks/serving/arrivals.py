"""Who asks for what, and when: the same requests at the same times for every system."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from benchmarks.serving.accelerator import Request


def requests(load: str, repetition: int) -> Iterator[Request]:
    """Yield what is asked for, for ever: `uniform` is 8 steps, 1 s; `mixed` is 8 to 50 steps, 2 to 5 s, guidance on for every other one on average.

    Raises:
        ValueError: no such load.
    """
    if load not in LOADS:
        raise ValueError(f"load {load!r} is none of {', '.join(LOADS)}")
    draw = random.Random(f"{load} {repetition}")
    for seed in itertools.count():
        if load == "uniform":
            yield Request(8, 1.0, 1.0, seed)
        else:
            yield Request(
                draw.randint(8, 50), draw.choice([2.0, 3.0, 4.0, 5.0]), draw.choice([1.0, 3.0]), seed
            )


LOADS = ("uniform", "mixed")


def poisson(per_s: float, seconds: float, repetition: int) -> list[float]:
    """Return the times of a Poisson process within so many seconds; another rate stretches the same process."""
    draw = random.Random(f"arrivals {repetition}")
    times: list[float] = []
    at = draw.expovariate(1.0) / per_s
    while at < seconds:
        times.append(at)
        at += draw.expovariate(1.0) / per_s
    return times
