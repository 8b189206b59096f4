"""Kernel distance between two sets of embeddings: KAD (Chung et al. 2025).

An unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3), so it may be slightly negative.
Figures are multiplied by `SCALE`, as in the authors' toolkit. Unlike in that toolkit the bandwidth is the
reference's, so all systems are measured with one kernel.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist, pdist

from evaluation.metrics.frechet import check_embeddings

SCALE = 100.0


def median_bandwidth(reference: np.ndarray) -> float:
    """Return the median distance between two rows of (N, D).

    Raises:
        ValueError: half of the rows are equal, so the median is 0.
    """
    bandwidth = float(np.median(pdist(reference.astype(np.float64))))
    if bandwidth <= 0:
        raise ValueError("the median distance within the reference is 0: most of its embeddings are the same")
    return bandwidth


def rbf(x: np.ndarray, y: np.ndarray, bandwidth: float) -> np.ndarray:
    """Return exp(-|x - y|² / (2 bandwidth²)) of all pairs, (N, M) in float64."""
    return np.exp(cdist(x.astype(np.float64), y.astype(np.float64), "sqeuclidean") / (-2 * bandwidth**2))


def mmd2(k_xx: np.ndarray, k_yy: np.ndarray, k_xy: np.ndarray) -> float:
    """Return the unbiased squared discrepancy of kernel matrices (N, N), (M, M), (N, M)."""
    n, m = len(k_xx), len(k_yy)
    within = (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1)) + (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(within - 2 * k_xy.mean())


def kernel_distance(x: np.ndarray, reference: np.ndarray, *, bandwidth: float | None = None) -> float:
    """Return KAD of embeddings (N, D) to those of the reference (M, D), times `SCALE`.

    Raises:
        ValueError: see `check_embeddings` and `median_bandwidth`.
    """
    check_embeddings(x, reference)
    width = median_bandwidth(reference) if bandwidth is None else bandwidth
    return SCALE * mmd2(rbf(x, x, width), rbf(reference, reference, width), rbf(x, reference, width))
