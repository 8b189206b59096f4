"""Embedders: waveforms to vectors that distances are taken between. A metric's printed name carries its embedder's.

Built in and offline: `melstats`, `classifier` (the judge's penultimate layer), `random-conv` (a control: fixed random filters, which know nothing). From local
files: `clap:FOLDER` (evaluation/embedders/clap.py), `yamnet:FILE` (evaluation/embedders/yamnet.py) and, for any other network, `module:function:ARGUMENT`; evaluation/embedders/exported.py is an example of such a function.
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

WINDOWS = 4  # embeddings per sound of those that are built in


class Embedder(Protocol):
    """`name` is printed, as in FAD/name; `version` changes whenever the embedding of a sound might."""

    name: str
    version: str

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Return (N, F, D) float32 of waveforms (T,) of one length at 16 kHz: F embeddings of each, in order of time; they are levelled already."""
        ...


@runtime_checkable
class TextEmbedder(Protocol):
    """An embedder whose space holds texts too: relevance is the cosine of a sound and the words that it was asked for in."""

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


class MelStatistics:
    """Mean and deviation of each mel band over a window: 128 numbers that know no kinds of sound, but what is loud where."""

    name = "melstats"
    version = "1"

    def __init__(self) -> None:
        self.mel = MelSpectrogram()

    @torch.no_grad()
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        log_mel = self.mel(torch.from_numpy(np.stack(waveforms))).clamp(min=FLOOR)
        x = windows(log_mel)
        statistics = torch.cat([x.mean(1), x.std(1)], -1)
        return np.asarray(statistics.reshape(len(waveforms), WINDOWS, -1).numpy(), np.float32)


class Classifier:
    """The judge's penultimate layer over windows: it hears the kinds of sound that it was trained on, and no others."""

    name = "classifier"

    def __init__(self, classifier: SoundClassifier) -> None:
        self.classifier = classifier.eval()
        weights = hashlib.sha256(b"".join(w.numpy().tobytes() for w in classifier.state_dict().values()))
        self.version = fingerprint(classifier.labels, weights.hexdigest())

    @torch.no_grad()
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        x = self.classifier.embeddings(windows(self.classifier.log_mel(waveforms)))
        return np.asarray(x.reshape(len(waveforms), WINDOWS, -1).numpy(), np.float32)


class RandomConvolution:
    """A convolutional network with fixed random weights. A control: what it sees between two sets, no knowledge of sounds was needed for."""

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
        return np.asarray(x.mean((2, 3)).reshape(len(waveforms), WINDOWS, -1).numpy(), np.float32)


def load_embedder(spec: str, classifier: Callable[[], SoundClassifier]) -> Embedder:
    """Build the embedder of "melstats", "classifier", "random-conv", "clap:FOLDER", "yamnet:FILE" or "module:function:ARGUMENT".

    Raises:
        ValueError: an unknown name, or what the function refuses, e.g. a weight file that is not there.
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
    """Return (N, F, D) of waveforms (T,) of one length, each levelled to a peak of 0.5 first.

    Raises:
        ValueError: the embedder gave something else.
    """
    levelled = [level(w)[0] for w in waveforms]
    parts = [embedder.embed(levelled[i : i + batch_size]) for i in range(0, len(levelled), batch_size)]
    embeds = np.concatenate(parts)
    if embeds.ndim != 3 or len(embeds) != len(waveforms) or not np.isfinite(embeds).all():
        raise ValueError(
            f"{embedder.name}: expected finite embeddings ({len(waveforms)}, F, D), got {embeds.shape}"
        )
    return embeds.astype(np.float32)
