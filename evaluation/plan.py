"""The plan: queries and seeds, the same for every system, so that N and class counts are equal.

Each labelled validation clip is a query by its image and by a phrase of its class, several times, each with
its own seed. A `Sample` is one such sound. Intervals resample clips, with all their text and image samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.audio import fingerprint
from evaluation.clips import LabelledClip
from evaluation.interfaces import Query, QueryKind, Synthesizer


@dataclass(frozen=True)
class Sample:
    """A query and a seed: one sound. `turn` counts the sounds of the query's clip.

    No two samples of a plan share a seed: sounds of one class from the same noise would be too similar.
    """

    query: Query
    seed: int
    turn: int = 0

    @property
    def stem(self) -> str:
        """Name of the sound's file: kind, clip, seed and a hash of the query."""
        q = self.query
        mark = fingerprint(q.prompt, q.duration_s, q.image and q.image.size)[:6]
        return f"{q.kind}-{_place(q.clip)}-{self.seed}-{mark}"


def _place(clip: str) -> str:
    return Path(clip).with_suffix("").as_posix().replace("/", "-")


@dataclass(frozen=True)
class Plan:
    """`seeds` sounds of every clip for distances, at least `per_class` of every class for class accuracy.

    Seeds count from `first_seed`, so that choices can be made with other seeds than the report's.
    """

    clips: Sequence[LabelledClip]
    phrases: Mapping[str, Sequence[str]]
    seeds: int = 3
    per_class: int = 50
    duration_s: float = 4.0
    first_seed: int = 0

    def __post_init__(self) -> None:
        if len(self.clips) < 2:
            raise ValueError(f"distances need at least 2 clips, got {len(self.clips)}")
        if self.seeds < 1 or self.per_class < 0:
            raise ValueError(f"need `seeds` >= 1 and `per_class` >= 0, got {self.seeds} and {self.per_class}")
        missing = sorted({clip.label for clip in self.clips} - set(self.phrases))
        if missing:
            raise ValueError(f"the queries have no phrases for the class {missing[0]!r}")
        files = {_place(clip.file): clip.file for clip in self.clips}
        for clip in self.clips:
            if (other := files[_place(clip.file)]) != clip.file:
                raise ValueError(f"{clip.file} and {other} would share their sounds' names: rename one")

    def samples(self, kind: QueryKind) -> list[Sample]:
        """Return all samples of a kind: one of every clip, then a second of each, and so on."""
        seeds = {clip.file: i for i, clip in enumerate(self.clips)}
        by_class: dict[str, list[LabelledClip]] = defaultdict(list)
        for clip in self.clips:
            by_class[clip.label].append(clip)
        found: list[Sample] = []
        for label, clips in by_class.items():
            wanted = max(self.seeds * len(clips), self.per_class)
            for n in range(wanted):
                turn, place = divmod(n, len(clips))
                seed = self.first_seed + turn * len(self.clips) + seeds[clips[place].file]
                found.append(Sample(self._query(kind, label, clips[place], place + turn), seed, turn))
        return sorted(found, key=lambda s: s.seed)

    def _query(self, kind: QueryKind, label: str, clip: LabelledClip, turn: int) -> Query:
        texts = self.phrases[label]
        return Query(
            label,
            clip.file,
            prompt=texts[turn % len(texts)] if kind == "text" else None,
            image=clip.frame if kind == "image" else None,
            duration_s=self.duration_s,
        )

    def for_distances(self, samples: Sequence[Sample], turn: int) -> list[Sample]:
        """Return the sample of each clip for one turn, in the clips' order."""
        found = {s.query.clip: s for s in samples if s.turn == turn}
        return [found[clip.file] for clip in self.clips]

    def for_class_accuracy(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return the first `per_class` samples of each class; all if `per_class` is 0."""
        taken: dict[str, int] = defaultdict(int)
        found = []
        for sample in samples:
            if self.per_class == 0 or taken[sample.query.label] < self.per_class:
                taken[sample.query.label] += 1
                found.append(sample)
        return found


def once(sample: Sample) -> Sample:
    """Return the sample that a deterministic system makes for any seed."""
    return replace(sample, seed=0)


def made_by(system: Synthesizer, sample: Sample) -> Sample:
    """Return the sample that the system really makes: a deterministic one makes each query once."""
    return once(sample) if system.deterministic else sample
