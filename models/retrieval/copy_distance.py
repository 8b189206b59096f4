"""Novelty: how far a sound is from the training clip most like it. A system that copies its training clips has the best distances of all.

Log-mels are compared, not embeddings: those find copies less reliably. The middle of a sound is slid over each training clip, and 1 minus the highest correlation is
its distance. What counts as a copy is learned from the training clips: the 5th percentile of their own distances to clips of other sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

POOL = 5  # mel frames per step of the search
SLACK = 0.25  # of a sound's length: how far it is slid
COPY_QUANTILE = 0.05
NEIGHBOURS = 50  # training clips among which the nearest may stand out
CONSTANT = 1e-3  # norm below which a stretch of a log-mel has no shape that another could have too
CHUNK = 32  # sounds at a time


def pool(log_mel: np.ndarray, frames: int = POOL, bands: int = 1) -> np.ndarray:
    """Return (F, M) averaged over `frames` frames and `bands` bands, (F // frames, M // bands)."""
    whole = len(log_mel) // frames * frames
    return log_mel[:whole].reshape(-1, frames, log_mel.shape[1] // bands, bands).mean((1, 3))


class Search:
    """Training clips, laid out so that sounds of any length are found in all of them at once.

    A clip shorter than what is searched for is slid over that, with its own mean before and after it. Each clip goes without its mean, which no
    correlation sees.
    """

    def __init__(self, train: Sequence[np.ndarray]) -> None:
        """Lay out small log-mels (F, M), as `pool` makes them.

        Raises:
            ValueError: there are none.
        """
        if not len(train):
            raise ValueError("novelty needs training clips, got none")
        self._lengths = np.array([len(clip) for clip in train])
        self._clips = np.zeros((len(train), self._lengths.max(), train[0].shape[1]), np.float32)
        for laid, clip in zip(self._clips, train, strict=True):
            laid[: len(clip)] = clip - clip.mean(dtype=np.float64)
        exact = self._clips.astype(np.float64)
        self._sums, self._squares = (
            np.pad(x.sum(2).cumsum(1).T, ((1, 0), (0, 0))) for x in (exact, exact**2)
        )
        self._transformed = self._transform(self._clips.shape[1])

    def _transform(self, length: int) -> tuple[int, np.ndarray]:
        """Return for sounds of up to `length` frames the transform's size, and the clips' spectra over time (K, T, M)."""
        size = next_fast_len(length, real=True)
        return size, np.ascontiguousarray(rfft(self._clips, size, axis=1).swapaxes(0, 1))

    def distances(self, sounds: Sequence[np.ndarray], among: np.ndarray | None = None) -> np.ndarray:
        """Return (N, T): 1 - the highest correlation of each sound's middle with each training clip, over all shifts; 0 is a copy, 1 nothing alike.

        Args:
            sounds: small log-mels (F, M) of one length. among: numbers of the T training clips to look at; None for all.

        Raises:
            ValueError: no sounds.
        """
        if not len(sounds):
            raise ValueError("novelty needs sounds, got none")
        margin = round(len(sounds[0]) * SLACK / 2)
        middles = np.stack([m[margin : len(m) - margin] for m in sounds])
        size = middles.shape[1]
        fft_size, spectra = self._transformed  # together: several threads may search
        if size > fft_size:
            fft_size, spectra = self._transformed = self._transform(size)
        clips = np.arange(len(self._lengths)) if among is None else among
        room = self._lengths[clips] - size  # to slide a sound over a clip; below 0 a clip over a sound
        shifts = np.arange(min(0, room.min()), max(0, room.max()) + 1)
        norms = self._norms(shifts, size, clips)
        outside = (shifts[:, None] < np.minimum(room, 0)) | (shifts[:, None] > np.maximum(room, 0))
        norms[outside | (norms <= CONSTANT)] = np.inf
        spectra = spectra if among is None else spectra[:, among]
        return np.concatenate(
            [
                _correlate(middles[n : n + CHUNK], spectra, fft_size, shifts, norms)
                for n in range(0, len(middles), CHUNK)
            ]
        )

    def _norms(self, shifts: np.ndarray, size: int, clips: np.ndarray) -> np.ndarray:
        """Return the norm (S, T) of the stretch of `size` frames that begins at each shift, without its mean."""
        first, end = (np.clip(x, 0, self._clips.shape[1]) for x in (shifts, shifts + size))
        total, squares = ((x[end] - x[first])[:, clips] for x in (self._sums, self._squares))
        square = squares - total**2 / (size * self._clips.shape[2])
        return np.sqrt(np.maximum(square, 0)).astype(np.float32)


def _correlate(
    middles: np.ndarray, spectra: np.ndarray, fft_size: int, shifts: np.ndarray, norms: np.ndarray
) -> np.ndarray:
    """Return the distances (N, T) of sounds (N, F, M) to clips by their spectra (K, T, M) and the norms (S, T) of their stretches."""
    shapes = middles - middles.mean((1, 2), keepdims=True)
    norm = np.linalg.norm(shapes, axis=(1, 2), keepdims=True)
    shapes = np.where(norm > CONSTANT, shapes / np.maximum(norm, CONSTANT), 0).astype(np.float32)
    wanted = rfft(shapes, fft_size, axis=1).conj().transpose(1, 2, 0)  # (K, M, N)
    correlation = irfft(spectra @ wanted, fft_size, axis=0)[shifts]  # (S, T, N); one below 0 is at the end
    return np.asarray(1 - (correlation / norms[..., None]).max(0).clip(0, 1).T, np.float32)


def distances(sounds: Sequence[np.ndarray], train: Sequence[np.ndarray]) -> np.ndarray:
    """Return (N, T), as `Search(train).distances(sounds)`."""
    return Search(train).distances(sounds)


def pick(train: Sequence[np.ndarray], length: int, *, sample: int = 150, seed: int = 0) -> np.ndarray:
    """Return the numbers of up to `sample` training clips of `length` frames at least, by which is learned what a copy is."""
    long_enough = [i for i, clip in enumerate(train) if len(clip) >= length]
    return np.random.default_rng(seed).permutation(np.array(long_enough, int))[:sample]


def to_other_sources(
    apart: np.ndarray, picked: Sequence[int] | np.ndarray, sources: Sequence[frozenset[str]]
) -> np.ndarray:
    """Return (S', T), the distances of training clips of `picked` to those that share no source with them, infinite to others; a clip without such a one is left out.

    Args:
        apart: (S, T), distances of those picked to all. sources: what each of the T was made of: recordings, files.

    Raises:
        ValueError: nothing is left.
    """
    others = np.array([[not sources[i] & other for other in sources] for i in picked], bool)
    to_others = np.where(others.reshape(apart.shape), apart, np.inf)
    comparable = np.isfinite(to_others).any(1)
    if not comparable.any():
        raise ValueError("no training clip has one of another source to compare with")
    return np.asarray(to_others[comparable])


def copy_distance(to_others: np.ndarray) -> float:
    """Return the distance below which a sound counts as a copy, of what `to_other_sources` found."""
    return float(np.quantile(to_others.min(1), COPY_QUANTILE))


def relative(apart: np.ndarray) -> np.ndarray:
    """Return (N,): each sound's distance to the nearest training clip over the mean of those to the `NEIGHBOURS` nearest; 0 is like one clip and no other, 1 like none more.

    The adaptive distance of Carlini et al. 2023, "Extracting Training Data from Diffusion Models", with alpha = 1: sounds of a kind that has many alike
    are near to all of them without being a copy of one.

    Args:
        apart: (N, T); infinite ones do not count.
    """
    nearest = np.sort(apart, 1)[:, :NEIGHBOURS]
    known = np.isfinite(nearest)
    means = nearest.sum(1, where=known) / known.sum(1)
    return np.asarray(nearest[:, 0] / np.maximum(means, 1e-9))
