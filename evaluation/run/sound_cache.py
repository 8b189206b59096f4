"""Sounds of systems, kept on disk: each is made once, so that a run that was ended goes on where it was.

`FOLDER/<system's version>/<sample>.flac`, 16 bits, whole or not at all; in `features/` beside them lies what is computed of them. A few of the sounds are made
again by each run, for a version says nothing of the code that makes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from evaluation.audio import check_sound
from evaluation.interfaces import SAMPLE_RATE, Synthesizer
from evaluation.plan import Sample, asked_of

SAME = 1e-2  # of full scale, by which a sound in 16 bits may differ when it is made again in other company
COMPARED = 5  # sounds that are made again: what changed may be heard in some kinds of sound only


class SoundStore:
    """Sounds of one system."""

    def __init__(self, folder: Path, system: Synthesizer) -> None:
        self.folder, self.system = folder / system.version, system
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, sample: Sample) -> Path:
        return self.folder / f"{asked_of(self.system, sample).stem}.flac"

    def make(self, samples: Sequence[Sample], *, batch_size: int, on_progress: Callable[[int], None]) -> None:
        """Make those of `samples` that are missing, and call `on_progress` with how many of them there are by now.

        Raises:
            ValueError: the system cannot serve a query, or gave a sound that is none; the message names both. Or those that are kept are not what it makes now.
        """
        wanted = {self.path(s): asked_of(self.system, s) for s in samples}
        there = {path for path in wanted if path.exists()}
        kept = [sample for path, sample in wanted.items() if path in there]
        missing = [sample for path, sample in wanted.items() if path not in there]
        self._compare(kept[:: max(1, len(kept) // COMPARED)][:COMPARED])
        done = len(samples) - len(missing)
        on_progress(done)
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            sounds = self.system.synthesize([s.query for s in batch], [s.seed for s in batch])
            for sample, sound in zip(batch, sounds, strict=True):
                self._write(sample, check_sound(sound, f"{self.system.name}, {sample.stem}"))
            done += len(batch)
            on_progress(done)

    def _compare(self, samples: Sequence[Sample]) -> None:
        for sample, kept in zip(samples, self.read(samples), strict=True):
            [now] = self.system.synthesize([sample.query], [sample.seed])
            if len(kept) != len(now) or np.abs(np.clip(now, -1, 1) - kept).max(initial=0) > SAME:
                raise ValueError(
                    f"{self.system.name} does not make {sample.stem} as it is kept in {self.folder}: remove that folder, or choose another --out"
                )

    def _write(self, sample: Sample, sound: np.ndarray) -> None:
        path = self.path(sample)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        soundfile.write(temporary, np.clip(sound, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        os.replace(temporary, path)

    def read(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Return the waveforms (T,) float32 of samples that were made."""
        return [soundfile.read(self.path(s), dtype="float32")[0] for s in samples]
