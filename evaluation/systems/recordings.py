"""Real clips as a system: the figures of recordings, and the distance between two sets of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.audio import fingerprint, fit
from evaluation.clips import read_sound
from evaluation.interfaces import Query, QueryKind
from evaluation.plan import Sample


class Recordings:
    """Answers a query with the sound of its own clip."""

    kinds: frozenset[QueryKind] = frozenset({"clip"})
    deterministic, generative, unlabeled, training_query = True, False, False, "–"

    def __init__(self, name: str, clips: Path) -> None:
        self.name, self.clips = name, clips
        self.version = fingerprint("recordings", clips.resolve().as_posix())

    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        del seeds
        return [fit(read_sound(self.clips / query.clip), query.duration_s) for query in queries]


def floor_samples(
    wanted: Sequence[str], train: Mapping[str, str], seeds: int, duration_s: float
) -> list[Sample]:
    """Return `seeds` sets of training clips, one after the other, each with the classes `wanted` in order.

    No clip comes twice before all clips of its class came once.

    Args:
        wanted: class of each validation clip.
        train: {file: class} of the training clips.

    Raises:
        ValueError: a class has no training clips.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for file in np.random.default_rng(0).permutation(sorted(train)):
        by_class[train[file]].append(str(file))
    taken: dict[str, int] = defaultdict(int)
    samples = []
    for turn in range(seeds):
        for label in wanted:
            if not by_class[label]:
                raise ValueError(f"no training clip is of class {label!r}")
            file = by_class[label][taken[label] % len(by_class[label])]
            taken[label] += 1
            samples.append(Sample(Query(label, file, duration_s=duration_s), 0, turn))
    return samples
