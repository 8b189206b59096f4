"""Wav2CLIP's sound encoder: a waveform to the space of CLIP ViT-B/32.

Wu et al. 2022, "Wav2CLIP: Learning Robust Audio Representations from CLIP". A ResNet-18 on the log
spectrogram and two linear layers, distilled from CLIP's image encoder on unlabelled videos. The weights
(github.com/descriptinc/lyrebird-wav2clip, MIT) are read from a local file and never downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

N_FFT, HOP = 512, 353
EMBED_DIM = 512
PREFIXES = {"audio_encoder.": "trunk.", "audio_transform.sequential.": "head."}  # the file's names to ours
UNUSED = ("trunk.fc.", "trunk.spectrogram.")  # an unused classifier, and the window


class Wav2Clip(nn.Module):
    """Waveforms (B, T) in [-1, 1] at 16 kHz to unit vectors (B, 512)."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.trunk = resnet18(weights=None)
        self.trunk.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)  # one channel, no colours
        self.trunk.fc = nn.Identity()
        self.head = nn.Sequential(
            nn.Linear(EMBED_DIM, EMBED_DIM), nn.ReLU(), nn.Dropout(0.1), nn.Linear(EMBED_DIM, EMBED_DIM)
        )
        self.window = nn.Buffer(torch.hann_window(N_FFT), persistent=False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(
            waveform, N_FFT, hop_length=HOP, window=self.window, center=True, return_complex=True
        )
        logs = torch.log(spectrum.abs() ** 2 + 1e-7)  # (B, 257, F)
        mean, std = logs.mean((1, 2), keepdim=True), logs.std((1, 2), keepdim=True)
        return F.normalize(self.head(self.trunk(((logs - mean) / (std + 1e-9))[:, None])), dim=-1)


def load_wav2clip(file: Path) -> Wav2Clip:
    """Load the weights of a local file, `.pt` as published or `.safetensors` with the same names.

    Raises:
        ValueError: no such file, not readable as plain tensors, or not Wav2CLIP's.
    """
    if not file.is_file():
        raise ValueError(f"there is no {file}; get Wav2CLIP.pt from descriptinc/lyrebird-wav2clip's releases")
    try:
        if file.suffix == ".safetensors":
            found: Any = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)

    # Readers fail on foreign bytes with any exception.
    except Exception as error:
        raise ValueError(
            f"{file} cannot be read as plain tensors ({type(error).__name__}); "
            "if it is Wav2CLIP's, save its `state_dict` alone as .safetensors"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else {}
    weights = {
        ours + name.removeprefix(theirs): value
        for theirs, ours in PREFIXES.items()
        for name, value in state.items()
        if name.startswith(theirs)
    }
    model = Wav2Clip()
    try:
        model.load_state_dict({name: value for name, value in weights.items() if not name.startswith(UNUSED)})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} does not hold Wav2CLIP's weights: {reason}") from error
    return model.requires_grad_(False).eval()
