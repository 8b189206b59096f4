"""Embedders turn sounds into vectors, and distances compare sets of vectors.

Built in: `melstats`, `classifier` (the judge's penultimate layer), `random-conv` (a control: fixed random
filters). From local files: `clap:FOLDER`, `yamnet:FILE`, and `module:function:ARGUMENT` for other networks,
for example `evaluation.embedders.exported:load:FILE`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F

from evaluation.audio import fingerprint
from evaluation.embedders.classifier import FLOOR, SoundClassifier
from evaluation.interfaces import load_object
from models.audio.level import level
from models.audio.mel import MelSpectrogram

WINDOWS = 4  # embeddings per sound of the built-in embedders


class Embedder(Protocol):
    """`name` is printed, as in FAD/name. `version` must change if embeddings may change."""

    name: str
    version: str

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Return (N, F, D) float32, F embeddings in time, of levelled 16 kHz waveforms (T,) of one length."""
        ...


@runtime_checkable
class TextEmbedder(Protocol):
    """An embedder of texts too; relevance is the cosine of a sound and its prompt."""

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return (N, D) float32."""
        ...


@runtime_checkable
class JudgingEmbedder(Protocol):
    """An embedder trained on many kinds of sound; a linear classifier on its vectors is a second judge."""

    judges: bool


def windows(log_mel: torch.Tensor) -> torch.Tensor:
    """Return (B * WINDOWS, F // WINDOWS, M) of log-mels (B, F, M)."""
    length = log_mel.shape[1] // WINDOWS
    return log_mel[:, : WINDOWS * length].reshape(-1, length, log_mel.shape[2])


def _by_sound(x: torch.Tensor) -> np.ndarray:
    """Return (B, WINDOWS, D) of embeddings (B * WINDOWS, D)."""
    return np.asarray(x.reshape(-1, WINDOWS, x.shape[-1]).numpy(), np.float32)


class MelStatistics:
    """Mean and deviation of each mel band over a window, 128 numbers. Knows loudness, not kinds of sound."""

    name = "melstats"
    version = "1"

    def __init__(self) -> None:
        self.mel = MelSpectrogram()

    @torch.no_grad()
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        x = windows(self.mel(torch.from_numpy(np.stack(waveforms))).clamp(min=FLOOR))
        return _by_sound(torch.cat([x.mean(1), x.std(1)], -1))


class Classifier:
    """The judge's penultimate layer over windows. Knows only the kinds of sound in its training data."""

    name = "classifier"

    def __init__(self, classifier: SoundClassifier) -> None:
        self.classifier = classifier.eval()
        weights = hashlib.sha256(b"".join(w.numpy().tobytes() for w in classifier.state_dict().values()))
        self.version = fingerprint(classifier.labels, weights.hexdigest())

    @torch.no_grad()
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        return _by_sound(self.classifier.embeddings(windows(self.classifier.log_mel(waveforms))))


class RandomConvolution:
    """A convolutional network with fixed random weights: a control without knowledge of sounds."""

    name = "random-conv"
    version = "1"

    def __init__(self, dim: int = 64) -> None:
        self.mel = MelSpectrogram()
        generator = torch.Generator().manual_seed(0)
        channels = [1, 16, 32, dim]
        self.kernels = [
            torch.randn(b, a, 5, 5, generator=generator) * (2 / (25 * a)) ** 0.5
            for a, b in pairwise(channels)
        ]

    @torch.no_grad()
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        log_mel = self.mel(torch.from_numpy(np.stack(waveforms))).clamp(min=FLOOR)
        x = (windows(log_mel)[:, None] + 4) / 2
        for kernel in self.kernels:
            x = F.relu(F.conv2d(x, kernel, stride=2, padding=2))
        return _by_sound(x.mean((2, 3)))


def load_embedder(spec: str, classifier: Callable[[], SoundClassifier]) -> Embedder:
    """Build an embedder by name, or from "clap:FOLDER", "yamnet:FILE" or "module:function:ARGUMENT".

    Raises:
        ValueError: the name is unknown, or a file is missing.
    """
    kind, _, argument = spec.partition(":")
    if spec == "melstats":
        return MelStatistics()
    if spec == "classifier":
        return Classifier(classifier())
    if spec == "random-conv":
        return RandomConvolution()
    if kind == "clap" and argument:
        from evaluation.embedders.clap import Clap

        return Clap(Path(argument))
    if kind == "yamnet" and argument:
        from evaluation.embedders.yamnet import YamNet

        return YamNet(Path(argument))
    function, colon, argument = argument.partition(":")
    if not (function and colon):
        raise ValueError(
            f"{spec!r}: embedders are melstats, classifier, random-conv, clap:FOLDER, yamnet:FILE "
            "or module:function:ARGUMENT"
        )
    return cast(Embedder, load_object(f"{kind}:{function}")(argument))


def embed_all(embedder: Embedder, waveforms: Sequence[np.ndarray], batch_size: int = 32) -> np.ndarray:
    """Level waveforms (T,) of one length to a peak of 0.5 and return their embeddings (N, F, D).

    Raises:
        ValueError: the embedder returned another shape, or values that are not finite.
    """
    levelled = [level(w)[0] for w in waveforms]
    parts = [embedder.embed(levelled[i : i + batch_size]) for i in range(0, len(levelled), batch_size)]
    embeds = np.concatenate(parts)
    if embeds.ndim != 3 or len(embeds) != len(waveforms) or not np.isfinite(embeds).all():
        raise ValueError(
            f"{embedder.name}: expected finite embeddings ({len(waveforms)}, F, D), got {embeds.shape}"
        )
    return embeds.astype(np.float32)
