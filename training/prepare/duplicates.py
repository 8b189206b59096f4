"""Find near-duplicates by sound: 64 bytes per clip.

After Haitsma & Kalker 2002, "A Highly Robust Audio Fingerprinting System".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TIMES, BANDS = 32, 16  # 32 x 16 bits = 64 bytes, kept as 32 words
MAX_DISTANCE = 0.12  # largest share of differing bits of duplicates
MAX_COMPARED = 64  # earlier clips to compare a clip with, per group that shares a word


def fingerprint(mel: np.ndarray) -> np.ndarray:
    """Return (32,) uint16 for a log-mel (F, M): signs of changes of band differences over time."""
    rows = np.array([part.mean(0) for part in np.array_split(mel.astype(np.float32), TIMES + 1)])
    # (TIMES + 1, BANDS + 1)
    bands = np.array([part.mean(1) for part in np.array_split(rows, BANDS + 1, axis=1)]).T
    bits = np.diff(np.diff(bands, axis=1), axis=0) > 0
    return np.packbits(bits).view(np.uint16)


def near_duplicates(prints: Sequence[np.ndarray] | np.ndarray) -> dict[int, int]:
    """Return {clip: the earlier clip that it repeats} for fingerprints (N, 32).

    Compares only clips that share one of the 32 words. If 12 % of the bits differ at random, 99 % of pairs
    share one (1 - (1 - 0.88^16)^32).
    """
    words = np.asarray(prints, np.uint16).reshape(-1, TIMES)
    bits = np.unpackbits(words.view(np.uint8), axis=1)
    repeats: dict[int, int] = {}
    for column in words.T:
        order = np.argsort(column, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(column[order])) + 1):
            for position in range(1, len(group)):
                clip, others = int(group[position]), group[max(0, position - MAX_COMPARED) : position]
                close = others[(bits[others] != bits[clip]).mean(1) <= MAX_DISTANCE]
                if clip not in repeats and len(close):
                    repeats[clip] = int(close[0])
    return repeats
