"""Thumbnails: small log-mels of the training clips, to find copies. Too small to hear the clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from models.retrieval.copy_distance import Search, copy_distance, pick, pool, to_other_sources

FRAMES, BANDS = 10, 2  # mel frames and bands per value
PHASE = 2  # mel frames between two layouts of a sound: a copy may start anywhere
CANDIDATES = 32  # training clips that are compared in all layouts
# For more clips an index keeps no thumbnails: the search would take longer than making the sound.
MAX_CLIPS = 20_000
COPY_DURATIONS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
NAMES = ("pictures", "picture_lengths", "copy_distance")  # tensors in an index, as saved


def layouts(log_mel: np.ndarray) -> list[np.ndarray]:
    """Return small log-mels of a log-mel (F, M), all of one length, with starts `PHASE` frames apart."""
    size = (len(log_mel) - (FRAMES - PHASE)) // FRAMES * FRAMES
    return [pool(log_mel[first : first + size], FRAMES, BANDS) for first in range(0, FRAMES, PHASE)]


class Thumbnails:
    """Thumbnails of the training clips of an index, in its order.

    Attributes:
        small: (N, F, M) int8, each clip at its own scale and level, which a correlation does not see.
        lengths: (N,) frames of each.
        copies: (K, 2), seconds of a sound, and the distance below which a sound of this length counts as a
            copy; K is 0 where the clips do not suffice.
    """

    def __init__(self, small: torch.Tensor, lengths: torch.Tensor, copies: torch.Tensor) -> None:
        self.small, self.lengths, self.copies = small, lengths, copies
        self._search = Search([clip[:n] for clip, n in zip(small.numpy(), lengths.tolist(), strict=True)])

    @classmethod
    def of(
        cls, log_mels: Sequence[np.ndarray], sources: Sequence[frozenset[str]], *, frame_rate: float
    ) -> Thumbnails:
        """Return the thumbnails of clips' log-mels (F, M), and learn the copy threshold.

        Args:
            sources: recordings or files that each clip was made from.
            frame_rate: mel frames per second.
        """
        small = [_to_int8(pool(log_mel, FRAMES, BANDS)) for log_mel in log_mels]
        lengths = [len(clip) for clip in small]
        laid = np.zeros((len(small), max(lengths), small[0].shape[1]), np.int8)
        for image, clip in zip(laid, small, strict=True):
            image[: len(clip)] = clip
        thumbnails = cls(torch.from_numpy(laid), torch.tensor(lengths), torch.zeros(0, 2))
        copies = []
        for seconds in COPY_DURATIONS_S:
            frames = round(seconds * frame_rate)
            picked = pick(log_mels, frames)
            apart = [thumbnails._search.distances(layouts(log_mels[i][:frames])).min(0) for i in picked]
            try:
                to_others = to_other_sources(np.array(apart).reshape(-1, len(laid)), picked, sources)
            except ValueError:
                continue
            copies.append((seconds, copy_distance(to_others)))

        thumbnails.copies = torch.tensor(copies).reshape(-1, 2)
        return thumbnails

    @classmethod
    def read(cls, tensors: Mapping[str, torch.Tensor]) -> Thumbnails:
        """Return the thumbnails in an index's tensors; KeyError where some are missing."""
        return cls(*(tensors[name] for name in NAMES))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by their names in an index."""
        return dict(zip(NAMES, (self.small, self.lengths, self.copies), strict=True))

    def nearest(self, log_mel: np.ndarray, k: int) -> list[tuple[int, float]]:
        """Return (number, distance in 0..1) of the k clips nearest to a log-mel (F, M), nearest first.

        All clips are compared in one layout, and the `CANDIDATES` nearest in all layouts.
        """
        found = layouts(log_mel)
        coarse = self._search.distances(found[:1])[0]
        among = np.argsort(coarse, kind="stable")[:CANDIDATES]
        fine = self._search.distances(found, among).min(0).clip(0, 1)
        order = np.argsort(fine, kind="stable")[:k]
        return [(int(among[i]), float(fine[i])) for i in order]

    def copy_distance(self, seconds: float) -> float | None:
        """Return the distance below which a sound of this length counts as a copy; None if unknown."""
        if not len(self.copies):
            return None
        durations, distances = self.copies.T.tolist()
        return float(np.interp(seconds, durations, distances))


def _to_int8(log_mel: np.ndarray) -> np.ndarray:
    centred = log_mel - log_mel.mean(dtype=np.float64)
    top = float(np.abs(centred).max())
    return np.round(centred * (127 / top if top > 1e-3 else 0.0)).astype(np.int8)
