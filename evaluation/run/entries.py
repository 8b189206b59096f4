"""The rows that are to be: which system is asked which samples, and the making of their sounds."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress

from evaluation.interfaces import QueryKind, Synthesizer
from evaluation.plan import Plan, Sample
from evaluation.run.feature_cache import Features
from evaluation.run.sound_cache import SoundStore
from evaluation.systems.recordings import Recordings, floor_samples

KINDS: tuple[QueryKind, ...] = ("text", "image", "clip")
REAL, FLOOR, TRAIN = "real validation clips", "real training clips (floor)", "training clips"
TRAIN_EXTRA_S = 1.0  # training clips are searched for copies beyond a sound's length


@dataclass(frozen=True)
class Entry:
    """One row to be.

    Attributes:
        sets: for each seed the samples that answer the plan's clips, in their order; for distances.
        judged: samples for class agreement; none where the judge was trained on these very sounds.
    """

    system: Synthesizer
    kind: QueryKind
    sets: list[list[Sample]]
    judged: list[Sample]
    folder: Path

    @property
    def samples(self) -> list[Sample]:
        """All samples, those for distances first."""
        wanted = [*(s for samples in self.sets for s in samples), *self.judged]
        return list({s.stem: s for s in wanted}.values())

    @property
    def distinct(self) -> int:
        """How many different sounds it has."""
        return len({self.store.path(s) for s in self.samples})

    @property
    def store(self) -> SoundStore:
        return SoundStore(self.folder / "sounds", self.system)

    @property
    def compared(self) -> Features:
        """Features of all sets, one after the other."""
        return self._features([s for samples in self.sets for s in samples])

    @property
    def heard(self) -> Features:
        """Features of the judged samples."""
        return self._features(self.judged)

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Return what `compared` gave (S * N, …), set by set."""
        return list(values.reshape(len(self.sets), -1, *values.shape[1:]))

    def _features(self, samples: list[Sample]) -> Features:
        return Features(self.store, samples)


class EvaluationContext:
    """Makes entries, all with their files below one folder: sounds/ and features/."""

    def __init__(self, folder: Path, plan: Plan, clips: Path) -> None:
        self.folder, self.plan, self.clips = folder, plan, clips

    def asked(self, system: Synthesizer, kind: QueryKind) -> Entry:
        """Return the entry of a system asked by `kind`."""
        samples = self.plan.samples(kind)
        sets = [self.plan.for_distances(samples, turn) for turn in range(self.plan.seeds)]
        if system.deterministic and kind != "text":  # a text's phrase turns with the seed, an image does not
            sets = sets[:1]
        return Entry(system, kind, sets, self.plan.for_class_accuracy(samples), self.folder)

    def real(self) -> Entry:
        """Return the entry of the validation clips themselves."""
        return self.asked(Recordings(REAL, self.clips), "clip")

    def floor(self, train: Mapping[str, str]) -> Entry:
        """Return the entry of training clips with the classes of the validation clips: how far two sets of real sounds are apart."""
        wanted = [clip.label for clip in self.plan.clips]
        samples = floor_samples(wanted, train, self.plan.seeds, self.plan.duration_s)
        sets = [samples[n : n + len(wanted)] for n in range(0, len(samples), len(wanted))]
        return Entry(Recordings(FLOOR, self.clips), "clip", sets, [], self.folder)

    def training_clips(self, train: Mapping[str, str]) -> Entry:
        """Return the entry, no row, of all training clips, a little longer than what is searched for in them."""
        samples = floor_samples(list(train.values()), train, 1, self.plan.duration_s + TRAIN_EXTRA_S)
        return Entry(Recordings(TRAIN, self.clips), "clip", [samples], [], self.folder)


def make_sounds(entries: Sequence[Entry], batch_size: int) -> None:
    """Make all sounds that are missing, with a bar for each entry.

    Raises:
        ValueError: a system cannot serve a query, or gave no sound.
    """
    with Progress() as progress:
        bars = [progress.add_task(f"{e.system.name} · {e.kind}", total=len(e.samples)) for e in entries]
        for entry, bar in zip(entries, bars, strict=True):

            def advance(done: int, bar: int = int(bar)) -> None:
                progress.update(bar, completed=done)  # type: ignore[arg-type]

            entry.store.make(entry.samples, batch_size=batch_size, on_progress=advance)


def write_queries(path: Path, plan: Plan, kinds: Sequence[QueryKind]) -> None:
    """Write what is asked as a CSV, for systems elsewhere: their folder's manifest.csv is this with a column `file`."""
    with path.open("w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["kind", "clip", "seed", "label", "prompt", "duration_s"])
        for kind in kinds:
            for s in plan.samples(kind):
                q = s.query
                rows.writerow([kind, q.clip, s.seed, q.label, q.prompt or "", q.duration_s])
