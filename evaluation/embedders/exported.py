"""An embedder of any network that `torch.export.save` wrote, and an example of a plug-in.

    clipsynth evaluate … --embedder "evaluation.embedders.exported:load:vggish.pt2?name=vggish"

The program takes waveforms (B, T) float32 and returns embeddings (B, D) or (B, F, D). For another format
write another function: it takes the text after its name and returns an `Embedder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from evaluation.audio import fingerprint, resample
from evaluation.interfaces import SAMPLE_RATE, split_options
from models.bundle import file_sha256


class Exported:
    """An exported program for sounds at `sample_rate` Hz, one at a time."""

    def __init__(self, file: Path, name: str, sample_rate: int) -> None:
        self.name, self.sample_rate = name, sample_rate
        self.version = fingerprint(file_sha256(file), sample_rate)
        self.program = torch.export.load(file).module()

    @torch.no_grad()
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        sounds = [torch.from_numpy(resample(w, SAMPLE_RATE, self.sample_rate)) for w in waveforms]
        embeds = np.concatenate([self.program(sound[None]).numpy() for sound in sounds])
        return embeds[:, None] if embeds.ndim == 2 else embeds


def load(argument: str) -> Exported:
    """Build from "FILE", "FILE?name=vggish&sample_rate=16000".

    Raises:
        ValueError: the file does not exist.
    """
    place, options = split_options(argument, {"name": str, "sample_rate": int})
    file = Path(place)
    if not file.is_file():
        raise ValueError(f"embedder: there is no weight file {file}")
    return Exported(file, options.get("name", file.stem), options.get("sample_rate", SAMPLE_RATE))
