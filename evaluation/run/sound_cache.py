"""Sounds of systems on disk. Each is made once, so that a stopped run can continue.

`FOLDER/<system's version>/<sample>.flac` with 16 bits, written atomically; features/ beside them. A version
does not cover the code that makes the sounds, so each run makes a few of them again and compares.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from evaluation.audio import check_sound
from evaluation.interfaces import SAMPLE_RATE, Synthesizer
from evaluation.plan import Sample, made_by

TOLERATED = 1e-2  # of full scale: 16 bits, and another batch
COMPARED = 5  # sounds that are made again: a change may affect some kinds of sound only


class SoundStore:
    """Sounds of one system."""

    def __init__(self, folder: Path, system: Synthesizer) -> None:
        self.folder, self.system = folder / system.version, system
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, sample: Sample) -> Path:
        return self.folder / f"{made_by(self.system, sample).stem}.flac"

    def make(self, samples: Sequence[Sample], *, batch_size: int, on_progress: Callable[[int], None]) -> None:
        """Make the missing sounds of `samples`; `on_progress` gets the number of existing sounds.

        Raises:
            ValueError: the system cannot answer a query, returned no valid sound, or makes another sound than
                the one on disk. The message names system and sample.
        """
        wanted = {self.path(s): made_by(self.system, s) for s in samples}
        existing = {path for path in wanted if path.exists()}
        kept = [sample for path, sample in wanted.items() if path in existing]
        missing = [sample for path, sample in wanted.items() if path not in existing]
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
            if len(kept) != len(now) or np.abs(np.clip(now, -1, 1) - kept).max(initial=0) > TOLERATED:
                raise ValueError(
                    f"{self.system.name} makes another sound for {sample.stem} than the one in "
                    f"{self.folder}: remove that folder, or choose another --out"
                )

    def _write(self, sample: Sample, sound: np.ndarray) -> None:
        path = self.path(sample)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        soundfile.write(temporary, np.clip(sound, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        os.replace(temporary, path)

    def read(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Return the waveforms (T,) float32 of samples; their sounds must exist."""
        return [soundfile.read(self.path(s), dtype="float32")[0] for s in samples]
