"""Novelty: how far a generated sound is from the training clip most like it. A system that copies its training clips has the best distances of all.

Log-mels are compared, not embeddings: those find copies less reliably. The middle of a sound is slid over each training clip, and 1 minus the highest correlation is
its distance. What counts as a copy is learned from the training clips: the 5th percentile of their own distances to clips of other sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POOL = 5  # mel frames per step of the search
SLACK = 0.25  # of a sound's length: how far it is slid
CHUNK = 64  # training clips at a time


def pool(log_mel: np.ndarray) -> np.ndarray:
    """Return (F, M) averaged over `POOL` frames, (F // POOL, M)."""
    whole = len(log_mel) // POOL * POOL
    return log_mel[:whole].reshape(-1, POOL, log_mel.shape[1]).mean(1)


def _unit(x: np.ndarray) -> np.ndarray:
    """Return (N, K) rows without mean at norm 1; rows that are constant become 0, like nothing."""
    x = x - x.mean(1, keepdims=True)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(np.where(norm > 1e-3, x / np.maximum(norm, 1e-3), 0), np.float32)


def distances(sounds: Sequence[np.ndarray], train: Sequence[np.ndarray]) -> np.ndarray:
    """Return (N, T): 1 - the highest correlation of each sound's middle with each training clip, over all shifts; 0 is a copy, 1 nothing alike.

    Args:
        sounds: small log-mels (F, M) of one length, as `pool` makes them. train: the same of training clips, (F', M), none shorter than a sound's middle.

    Raises:
        ValueError: no sounds, no training clips, or a training clip that is too short.
    """
    if not len(sounds) or not len(train):
        raise ValueError(f"novelty needs sounds and training clips, got {len(sounds)} and {len(train)}")
    margin = round(len(sounds[0]) * SLACK / 2)
    middles = np.stack([m[margin : len(m) - margin] for m in sounds])
    length = middles.shape[1]
    templates = _unit(middles.reshape(len(middles), -1))
    found = np.empty((len(sounds), len(train)), np.float32)
    for first in range(0, len(train), CHUNK):
        windows, owner = [], []
        for i, clip in enumerate(train[first : first + CHUNK], first):
            if len(clip) < length:
                raise ValueError(f"training clip {i} is shorter than what is searched for in it")
            views = np.lib.stride_tricks.sliding_window_view(clip, length, axis=0).swapaxes(1, 2)
            windows.append(views.reshape(len(views), -1))
            owner += [i] * len(views)
        similar = _unit(np.concatenate(windows)) @ templates.T  # (windows, N)
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        found[:, first : first + CHUNK] = 1 - np.maximum.reduceat(similar, starts, axis=0).T
    return found


def copy_threshold(
    train: Sequence[np.ndarray],
    sources: Sequence[frozenset[str]],
    *,
    length: int,
    sample: int = 150,
    seed: int = 0,
) -> float:
    """Return the 5th percentile of training clips' distances to the nearest clip that shares no source with them, over `sample` of them.

    Args:
        train: small log-mels (F, M). sources: what each was made of: recordings, files. length: of the sounds that will be compared.

    Raises:
        ValueError: all clips are of one source.
    """
    picked = np.random.default_rng(seed).permutation(len(train))[:sample]
    apart = distances([train[i][:length] for i in picked], train)
    for row, i in zip(apart, picked, strict=True):
        row[[bool(sources[i] & other) for other in sources]] = np.inf
    nearest = apart.min(1)
    if not np.isfinite(nearest).any():
        raise ValueError("no training clip has one of another source to compare with")
    return float(np.quantile(nearest[np.isfinite(nearest)], 0.05))
