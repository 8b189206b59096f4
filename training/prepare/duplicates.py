"""Find near-duplicates by sound: 64 bytes per clip.

After Haitsma & Kalker 2002, "A Highly Robust Audio Fingerprinting System".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TIMES, BANDS = 32, 16  # 32 x 16 bits = 64 bytes, kept as 32 words
MAX_DISTANCE = 0.12  # largest share of differing bits of duplicates
PAIRS = 1 << 20  # compared at a time
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
    words = np.ascontiguousarray(np.asarray(prints, np.uint16).reshape(-1, TIMES))
    packed = words.view(np.uint64)
    repeats: dict[int, int] = {}
    found = np.zeros(len(words), bool)
    for column in words.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        for distance in range(1, MAX_COMPARED + 1):
            pairs = np.flatnonzero(ordered[distance:] == ordered[:-distance])
            if not len(pairs):
                break
            pairs = pairs[~found[order[pairs + distance]]]
            for part in np.array_split(pairs, len(pairs) // PAIRS + 1):
                clips, others = order[part + distance], order[part]
                different = np.bitwise_count(packed[clips] ^ packed[others]).sum(1)
                close = different <= MAX_DISTANCE * 16 * TIMES
                repeats |= zip(clips[close].tolist(), others[close].tolist(), strict=True)
                found[clips[close]] = True
    return repeats
