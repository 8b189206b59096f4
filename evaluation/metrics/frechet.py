"""Fréchet distance between two sets of embeddings as Gaussians (Dowson & Landau 1982).

FID: Heusel et al. 2017; FAD: Kilgour et al. 2019.

    d² = |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁^½ Σ₂ Σ₁^½)^½

In float64 and by eigenvalues, so no root of a matrix has complex entries.
"""

from __future__ import annotations

import numpy as np

MIN_CLIPS = 8  # per set, for the extrapolation


def check_embeddings(x: np.ndarray, y: np.ndarray) -> None:
    """Raise ValueError unless both are (N, D) with one D, at least two rows and finite values."""
    for name, e in (("x", x), ("y", y)):
        if e.ndim != 2 or len(e) < 2:
            raise ValueError(f"`{name}` must be (N, D) with N >= 2 embeddings, got {e.shape}")
        if not np.isfinite(e).all():
            raise ValueError(f"`{name}` has values that are NaN or infinite")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings of {x.shape[1]} and of {y.shape[1]} dimensions cannot be compared")


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return d² of embeddings (N, D) and (M, D); covariances divide by N - 1.

    With fewer rows than dimensions, the last trace is the sum of the singular values of the centred rows'
    product, X Yᵀ / √((N - 1)(M - 1)): the same number from an (N, M) matrix.

    Raises:
        ValueError: see `check_embeddings`.
    """
    check_embeddings(x, y)
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean = x.mean(0) - y.mean(0)
    x, y = x - x.mean(0), y - y.mean(0)
    traces = (x**2).sum() / (len(x) - 1) + (y**2).sum() / (len(y) - 1)
    if min(len(x), len(y)) < x.shape[1]:
        shared = np.linalg.svd(x @ y.T, compute_uv=False).sum() / np.sqrt((len(x) - 1) * (len(y) - 1))
    else:
        values, vectors = np.linalg.eigh(x.T @ x / (len(x) - 1))
        root = vectors * np.sqrt(values.clip(min=0))  # Σ₁ = root rootᵀ
        inner = root.T @ (y.T @ y / (len(y) - 1)) @ root
        shared = np.sqrt(np.linalg.eigvalsh(inner).clip(min=0)).sum()
    return max(float(mean @ mean + traces - 2 * shared), 0.0)


def frechet_infinity(
    x: np.ndarray, y: np.ndarray, *, points: int = 6, draws: int = 3, seed: int = 0
) -> float:
    """Return the distance extrapolated to infinitely many clips: FAD∞.

    Gui et al. 2023, after FID∞ of Chong & Forsyth 2020. A Gaussian fitted to n clips makes the distance too
    large by about c / n. So a line is fitted to the distances of subsets of n clips of both sets, drawn
    without replacement, with n from N / 2 to N at even steps of 1 / n. The result is the line's value at 1
    / n = 0.

    Args:
        x, y: (N, D) or (N, F, D), F embeddings of each clip.
        draws: subsets per n.

    Raises:
        ValueError: the sets differ in size, or have fewer than `MIN_CLIPS` clips.
    """
    clips = len(x)
    if len(y) != clips or clips < MIN_CLIPS:
        raise ValueError(
            f"extrapolation needs two sets of one size of at least {MIN_CLIPS}, got {clips} and {len(y)}"
        )
    rng = np.random.default_rng(seed)
    inverse, distances = [], []
    for n in np.unique((1 / np.linspace(1 / clips, 2 / clips, points)).round().astype(int)):
        for _ in range(1 if n == clips else draws):
            a, b = (rng.permutation(clips)[:n] for _ in range(2))
            inverse.append(1 / n)
            distances.append(frechet_distance(*(s[p].reshape(-1, s.shape[-1]) for s, p in ((x, a), (y, b)))))
    return float(np.polynomial.polynomial.polyfit(inverse, distances, 1)[0])
