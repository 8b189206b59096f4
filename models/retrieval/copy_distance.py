"""Copy distance: how far a sound is from the most similar training clip.

A system that copies its training clips gets the best distances of all, so copies are measured. Log-mels are
compared, because embeddings find copies less reliably: the middle of a sound is moved over each training
clip, and the distance is 1 minus the highest correlation. The threshold for a copy is the 5th percentile of
the training clips' own distances to clips of other sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy

POOL = 5  # mel frames per step of the search
SLACK = 0.25  # share of a sound's length over which it is moved
COPY_QUANTILE = 0.05
PICKED = 150
NEIGHBOURS = 50  # training clips that `relative` compares with
CONSTANT = 1e-3  # a stretch of a log-mel with a smaller norm is constant and matches nothing
CHUNK = 32  # sounds at a time


def pool(log_mel: np.ndarray, frames: int = POOL, bands: int = 1) -> np.ndarray:
    """Return (F, M) averaged over `frames` frames and `bands` bands, (F // frames, M // bands)."""
    whole = len(log_mel) // frames * frames
    return log_mel[:whole].reshape(-1, frames, log_mel.shape[1] // bands, bands).mean((1, 3))


class Search:
    """Training clips in a layout that searches all of them at once, for sounds of any length.

    A clip that is shorter than the sound is moved over the sound, with its own mean before and after. The
    mean of each clip is removed, because a correlation does not see it.
    """

    def __init__(self, train: Sequence[np.ndarray]) -> None:
        """Take small log-mels (F, M), as `pool` makes them.

        Raises:
            ValueError: there are none.
        """
        if not len(train):
            raise ValueError("copy distance needs training clips, got none")
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
        """Return the FFT size and the clips' spectra (K, T, M) for sounds of up to `length` frames."""
        size = scipy.fft.next_fast_len(length, real=True)
        return size, np.ascontiguousarray(scipy.fft.rfft(self._clips, size, axis=1).swapaxes(0, 1))

    def distances(self, sounds: Sequence[np.ndarray], among: np.ndarray | None = None) -> np.ndarray:
        """Return (N, T): 1 minus the highest correlation of each sound's middle with each clip; 0 is a copy.

        Args:
            sounds: small log-mels (F, M) of one length.
            among: numbers of the T training clips to compare with; None for all.

        Raises:
            ValueError: no sounds.
        """
        if not len(sounds):
            raise ValueError("copy distance needs sounds, got none")
        margin = round(len(sounds[0]) * SLACK / 2)
        middles = np.stack([m[margin : len(m) - margin] for m in sounds])
        size = middles.shape[1]
        # One read: several threads may search.
        fft_size, spectra = self._transformed
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
        """Return the norm (S, T) of the `size` frames from each shift on, minus their mean."""
        first, end = (np.clip(x, 0, self._clips.shape[1]) for x in (shifts, shifts + size))
        total, squares = ((x[end] - x[first])[:, clips] for x in (self._sums, self._squares))
        square = squares - total**2 / (size * self._clips.shape[2])
        return np.sqrt(np.maximum(square, 0)).astype(np.float32)


def _correlate(
    middles: np.ndarray, spectra: np.ndarray, fft_size: int, shifts: np.ndarray, norms: np.ndarray
) -> np.ndarray:
    """Return the distances (N, T) of sounds (N, F, M) to clips with spectra (K, T, M) and norms (S, T)."""
    shapes = middles - middles.mean((1, 2), keepdims=True)
    norm = np.linalg.norm(shapes, axis=(1, 2), keepdims=True)
    shapes = np.where(norm > CONSTANT, shapes / np.maximum(norm, CONSTANT), 0).astype(np.float32)
    wanted = scipy.fft.rfft(shapes, fft_size, axis=1).conj().transpose(1, 2, 0)  # (K, M, N)
    # (S, T, N); one below 0 is at the end
    correlation = scipy.fft.irfft(spectra @ wanted, fft_size, axis=0)[shifts]
    return np.asarray(1 - (correlation / norms[..., None]).max(0).clip(0, 1).T, np.float32)


def pick(train: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Return up to `PICKED` clip numbers to learn the copy threshold from.

    The clips have at least `length` frames.
    """
    long_enough = [i for i, clip in enumerate(train) if len(clip) >= length]
    return np.random.default_rng(0).permutation(np.array(long_enough, int))[:PICKED]


def to_other_sources(
    apart: np.ndarray, picked: Sequence[int] | np.ndarray, sources: Sequence[frozenset[str]]
) -> np.ndarray:
    """Return distances (S', T) of the picked clips to clips of other sources.

    Distances to clips that share a source are infinite.

    A picked clip without a clip of another source is left out.

    Args:
        apart: (S, T), distances of the picked clips to all.
        sources: recordings or files that each of the T clips was made from.

    Raises:
        ValueError: no clip is left.
    """
    others = np.array([[not sources[i] & other for other in sources] for i in picked], bool)
    to_others = np.where(others.reshape(apart.shape), apart, np.inf)
    comparable = np.isfinite(to_others).any(1)
    if not comparable.any():
        raise ValueError("no training clip has one of another source to compare with")
    return np.asarray(to_others[comparable])


def copy_distance(to_others: np.ndarray) -> float:
    """Return the distance below which a sound counts as a copy, from the result of `to_other_sources`."""
    return float(np.quantile(to_others.min(1), COPY_QUANTILE))


def relative(apart: np.ndarray) -> np.ndarray:
    """Return (N,): distance to the nearest clip over the mean to the `NEIGHBOURS` nearest.

    The adaptive distance of Carlini et al. 2023, "Extracting Training Data from Diffusion Models", with alpha
    = 1. Near 0: similar to one clip and no other. 1: similar to many. Kinds of sound whose clips are all
    similar are near to all of them without copying one.

    Args:
        apart: (N, T); infinite distances do not count.
    """
    nearest = np.sort(apart, 1)[:, :NEIGHBOURS]
    known = np.isfinite(nearest)
    means = nearest.sum(1, where=known) / known.sum(1)
    return np.asarray(nearest[:, 0] / np.maximum(means, 1e-9))
