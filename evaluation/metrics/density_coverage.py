"""Density and coverage (Naeem et al. 2020, eqs. 4 and 5): quality and variety by nearest neighbours."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from evaluation.metrics.frechet import check_embeddings

K = 5  # neighbours, as in the paper


def inside(x: np.ndarray, reference: np.ndarray, k: int = K) -> np.ndarray:
    """Return (M, N): whether x[n] is within the distance from reference[m] to its k-th neighbour.

    Raises:
        ValueError: there are at most k references; see also `check_embeddings`.
    """
    check_embeddings(x, reference)
    if len(reference) <= k:
        raise ValueError(f"the {k}-th neighbour needs more than {k} references, got {len(reference)}")
    radius = np.sort(cdist(reference, reference), axis=1)[:, k]  # column 0 is the clip itself
    return np.asarray(cdist(reference, x) <= radius[:, None])


def coverage(within: np.ndarray) -> float:
    """Return the share of references with a sound in their ball, 1 at best; `within` is from `inside`."""
    return float(within.any(1).mean())


def density(within: np.ndarray, k: int = K) -> float:
    """Return the mean number of balls around a sound, over k: 1 for real sounds, more for typical ones."""
    return float(within.sum() / (k * within.shape[1]))
