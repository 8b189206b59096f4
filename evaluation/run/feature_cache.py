"""Features of sounds, kept as .npy: embeddings, class probabilities, small mels and levels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch

from evaluation.audio import fingerprint, fit, rms_dbfs
from evaluation.embedders.base import Classifier, Embedder, embed_all
from evaluation.embedders.classifier import SoundClassifier
from evaluation.plan import Sample
from evaluation.run.sound_cache import SoundStore
from models.audio.level import SILENT_PEAK, level
from models.audio.mel import MelSpectrogram
from models.retrieval.copy_distance import pool

CLIPPED = 0.999
LEVEL_COLUMNS = ("seconds", "rms_dbfs", "silent", "clipped")


class Features:
    """Features of samples of one store, in their order; sounds are first brought to their query's length."""

    def __init__(self, store: SoundStore, samples: Sequence[Sample]) -> None:
        if not samples:
            raise ValueError(f"{store.system.name}: there are no sounds")
        self.store, self.samples, self.folder = store, samples, store.folder / "features"
        self._paths = list(dict.fromkeys(store.path(s) for s in samples))  # each sound once
        place = {path: i for i, path in enumerate(self._paths)}
        self._place = np.array([place[store.path(s)] for s in samples])
        first = {store.path(s): s for s in reversed(samples)}
        self._distinct = [first[path] for path in self._paths]

    def embeds(self, embedder: Embedder) -> np.ndarray:
        """Return (N, F, D)."""
        return self._kept(f"{embedder.name}-{embedder.version}", lambda sounds: embed_all(embedder, sounds))

    def probabilities(self, judge: SoundClassifier) -> np.ndarray:
        """Return the judge's class probabilities (N, C)."""
        return self._kept(f"probabilities-{Classifier(judge).version}", judge.probabilities)

    def small_mels(self) -> np.ndarray:
        """Return log-mels (N, F // POOL, M) for the search for copies."""
        mel = MelSpectrogram()

        def compute(sounds: Sequence[np.ndarray]) -> np.ndarray:
            return np.stack([pool(mel(torch.from_numpy(level(w)[0])[None])[0].numpy()) for w in sounds])

        return self._kept("mel", compute)

    def levels(self) -> dict[str, np.ndarray]:
        """Return {name: (N,)}: seconds as made, RMS in dB of full scale, silent or not, clipped or not."""

        def compute(sounds: Sequence[np.ndarray]) -> np.ndarray:
            silent = [np.abs(w - w.mean()).max() < SILENT_PEAK for w in sounds]
            clipped = [np.abs(w).max() >= CLIPPED for w in sounds]
            return np.column_stack([[rms_dbfs(w) for w in sounds], silent, clipped])

        import soundfile

        rows = self._kept("levels", compute)
        seconds = np.array([soundfile.info(path).duration for path in self._paths])[self._place]
        return dict(zip(LEVEL_COLUMNS, np.column_stack([seconds, rows]).T, strict=True))

    def _kept(
        self, name: str, compute: Callable[[Sequence[np.ndarray]], np.ndarray], chunk: int = 64
    ) -> np.ndarray:
        key = fingerprint([path.name for path in self._paths])
        file = self.folder / f"{key}-{name}.npy"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            parts = []
            for start in range(0, len(self._distinct), chunk):
                batch = self._distinct[start : start + chunk]
                pairs = zip(self.store.read(batch), batch, strict=True)
                parts.append(compute([fit(sound, s.query.duration_s) for sound, s in pairs]))
            temporary = file.with_suffix(f".{os.getpid()}.tmp.npy")
            np.save(temporary, np.concatenate(parts), allow_pickle=False)
            os.replace(temporary, file)
        return np.asarray(np.load(file, allow_pickle=False)[self._place])
