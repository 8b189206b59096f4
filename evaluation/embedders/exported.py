"""An embedder of your own: any network that `torch.export.save` wrote. The plug-in point by example, for VGGish, PANNs, Wav2CLIP and the like.

    clipsynth evaluate … --embedder "evaluation.embedders.exported:load:vggish.pt2?name=vggish"

The program takes waveforms (B, T) float32 and gives embeddings (B, D) or (B, F, D). Another format is another function: it gets what follows its name and returns an
`Embedder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.signal import resample_poly

from evaluation.audio import fingerprint
from evaluation.interfaces import SAMPLE_RATE, split_options
from models.bundle import file_sha256


class Exported:
    """An exported program that hears `sample_rate`, one sound at a time."""

    def __init__(self, file: Path, name: str, sample_rate: int) -> None:
        self.name, self.sample_rate = name, sample_rate
        self.version = fingerprint(file_sha256(file), sample_rate)
        self.program = torch.export.load(file).module()

    @torch.no_grad()
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        divisor = int(np.gcd(self.sample_rate, SAMPLE_RATE))
        up, down = self.sample_rate // divisor, SAMPLE_RATE // divisor
        found = []
        for waveform in waveforms:
            sound = torch.from_numpy(resample_poly(waveform, up, down).astype(np.float32))
            found.append(self.program(sound[None]).numpy())
        embeds = np.concatenate(found)
        return embeds[:, None] if embeds.ndim == 2 else embeds


def load(argument: str) -> Exported:
    """Build from "FILE", "FILE?name=vggish&sample_rate=16000".

    Raises:
        ValueError: no such file.
    """
    place, options = split_options(argument, {"name": str, "sample_rate": int})
    file = Path(place)
    if not file.is_file():
        raise ValueError(f"embedder: there is no weight file {file}")
    return Exported(file, options.get("name", file.stem), options.get("sample_rate", SAMPLE_RATE))
