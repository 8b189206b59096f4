"""Density and coverage (Naeem et al. 2020, eqs. 4 and 5): do sounds lie where real ones do, and do they reach all of them?"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from evaluation.metrics.frechet import check_embeddings

K = 5  # neighbours, as the authors have it


def inside(x: np.ndarray, reference: np.ndarray, k: int = K) -> np.ndarray:
    """Return (M, N) booleans: whether x[n] is no further from reference[m] than its k-th nearest other reference.

    Raises:
        ValueError: not more than k references; see `check_embeddings`.
    """
    check_embeddings(x, reference)
    if len(reference) <= k:
        raise ValueError(f"the {k}-th neighbour needs more than {k} references, got {len(reference)}")
    radius = np.sort(cdist(reference, reference), axis=1)[:, k]  # column 0 is the clip itself
    return np.asarray(cdist(reference, x) <= radius[:, None])


def coverage(within: np.ndarray) -> float:
    """Return the share of references with a sound in their ball; `within` as `inside` returns it. 1 is best."""
    return float(within.any(1).mean())


def density(within: np.ndarray, k: int = K) -> float:
    """Return in how many balls a sound lies on average, over k: 1 for real sounds, more where sounds crowd around typical ones."""
    return float(within.sum() / (k * within.shape[1]))
