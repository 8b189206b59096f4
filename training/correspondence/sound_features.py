"""A clip's sound as one vector for matching it with images: numbers computed from its log-mel, nothing learned."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

NUM_CEPSTRA = 20
MODULATION_GROUPS = 16  # of neighbouring mel bands
MODULATION_EDGES_HZ = (0.1, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)


def sound_features(mel: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """Return what a log-mel (F, M), M >= 20, sounds like on the whole, (8 M + 227,) fp32.

    How loud and how changing each band is, quantiles over time, the spectrum where it is loudest and how jagged it is, the same of cepstra, and how
    much the envelopes of bands swing at which rate. Where in time something happens does not count.

    Args:
        frame_rate: mel frames per second, in Hz.
    """
    mel = mel.float()
    loudest = torch.softmax(2 * mel.mean(1), 0) @ mel
    quantiles = torch.quantile(mel, torch.tensor([0.1, 0.5, 0.9]), dim=0).flatten()
    jagged = mel.diff(dim=1).abs().mean(0)
    bands = [mel.mean(0), mel.std(0), mel.diff(dim=0).std(0), quantiles, loudest, jagged]
    cepstra = mel @ _cosines(mel.shape[1]).T  # (F, NUM_CEPSTRA)
    ends = torch.quantile(cepstra, torch.tensor([0.1, 0.9]), dim=0).flatten()
    timbre = [cepstra.mean(0), cepstra.std(0), (cepstra[2:] - cepstra[:-2]).std(0), ends]
    return torch.cat([*bands, *timbre, _modulation(mel, frame_rate)])


def _cosines(size: int) -> torch.Tensor:
    """Return the first rows of the DCT-II of `size` values, (NUM_CEPSTRA, size)."""
    places = torch.arange(size) + 0.5
    return (2 / size) ** 0.5 * torch.cos(math.pi / size * torch.outer(torch.arange(NUM_CEPSTRA), places))


def _modulation(mel: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """Return the log power of band envelopes in octaves of modulation rate; a rate that a short clip cannot hold has the power of silence."""
    groups = torch.stack([part.mean(1) for part in mel.tensor_split(MODULATION_GROUPS, dim=1)], 1)
    window = torch.hann_window(len(mel), periodic=False)[:, None]
    power = torch.fft.rfft((groups - groups.mean(0)) * window, dim=0).abs() ** 2 / len(mel)
    rates = torch.fft.rfftfreq(len(mel), 1 / frame_rate)
    rows = []
    for low, high in pairwise(MODULATION_EDGES_HZ):
        inside = (rates >= low) & (rates < high)
        rows.append(power[inside].sum(0) / inside.sum().clamp(min=1))
    return torch.log(torch.stack(rows) + 1e-5).flatten()
