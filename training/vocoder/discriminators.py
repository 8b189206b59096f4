"""Discriminators and adversarial losses for the vocoder.

Periods after HiFi-GAN (Kong et al. 2020, 2.2) and resolutions after UnivNet (Jang et al. 2021, 2.2), at
1/8 of the published width; at full width they take forty times the generator's time on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from training.vocoder.energy_distance import RESOLUTIONS

PERIODS = (2, 3, 5, 7, 11)
PERIOD_CHANNELS = (4, 16, 64, 128, 128)
RESOLUTION_CHANNELS = 4

Judgement = list[torch.Tensor]  # the feature maps of one discriminator; the last one is its verdict


class _Discriminator(nn.Module):
    """A stack of 2-D convolutions that returns every feature map."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def image(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return (B, 1, H, W) of a waveform (B, T)."""
        raise NotImplementedError

    def forward(self, waveform: torch.Tensor) -> Judgement:
        x, maps = self.image(waveform), []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
            x = F.leaky_relu(x, 0.1)
        return maps


class PeriodDiscriminator(_Discriminator):
    """Judge a waveform by samples `period` apart."""

    def __init__(self, period: int) -> None:
        channels = (1, *PERIOD_CHANNELS)
        strides = (3, 3, 3, 3, 1)
        layers = [
            weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), (2, 0)))
            for a, b, stride in zip(channels[:-1], channels[1:], strides, strict=True)
        ]
        super().__init__([*layers, weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))])
        self.period = period

    def image(self, waveform: torch.Tensor) -> torch.Tensor:
        padded = F.pad(waveform[:, None], (0, -waveform.shape[-1] % self.period), "reflect")
        return padded.view(len(waveform), 1, -1, self.period)


class ResolutionDiscriminator(_Discriminator):
    """Judge a waveform by its magnitude spectrogram of one resolution."""

    def __init__(self, n_fft: int, hop: int, window: int) -> None:
        c = RESOLUTION_CHANNELS
        layers = [weight_norm(nn.Conv2d(1, c, (3, 9), padding=(1, 4)))]
        layers += [weight_norm(nn.Conv2d(c, c, (3, 9), (1, 2), (1, 4))) for _ in range(3)]
        layers += [weight_norm(nn.Conv2d(c, c, 3, padding=1)), weight_norm(nn.Conv2d(c, 1, 3, padding=1))]
        super().__init__(layers)
        self.n_fft, self.hop = n_fft, hop
        self.window = nn.Buffer(torch.hann_window(window), persistent=False)

    def image(self, waveform: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(
            waveform.float(), self.n_fft, self.hop, len(self.window), self.window, return_complex=True
        )
        return spectrum.abs().clamp(min=1e-7).transpose(1, 2)[:, None]


class Discriminators(nn.Module):
    """All discriminators; returns their judgements of a waveform (B, T).

    HiFi-GAN has those of periods and resolutions, Vocos (Siuzdak 2023) has no `periods`.
    """

    def __init__(self, periods: Sequence[int] = PERIODS) -> None:
        super().__init__()
        by_period = map(PeriodDiscriminator, periods)
        self.members = nn.ModuleList([*by_period, *(ResolutionDiscriminator(*r) for r in RESOLUTIONS)])

    def forward(self, waveform: torch.Tensor) -> list[Judgement]:
        return [member(waveform) for member in self.members]


def hinge_loss(real: list[Judgement], made: list[Judgement]) -> torch.Tensor:
    """Return the hinge loss of the discriminators, averaged over them."""
    losses = [
        (1 - r[-1]).clamp(min=0).mean() + (1 + m[-1]).clamp(min=0).mean()
        for r, m in zip(real, made, strict=True)
    ]
    return torch.stack(losses).mean()


def discriminator_loss(real: list[Judgement], made: list[Judgement]) -> torch.Tensor:
    """Return the least-squares loss of the discriminators, averaged over them (HiFi-GAN, eq. 1)."""
    losses = [(1 - r[-1]).square().mean() + m[-1].square().mean() for r, m in zip(real, made, strict=True)]
    return torch.stack(losses).mean()


def adversarial_loss(made: list[Judgement]) -> torch.Tensor:
    """Return the least-squares loss of the generator, averaged over discriminators (HiFi-GAN, eq. 2)."""
    return torch.stack([(1 - maps[-1]).square().mean() for maps in made]).mean()


def feature_distance(real: list[Judgement], made: list[Judgement]) -> torch.Tensor:
    """Return the mean absolute difference of feature maps over maps and discriminators (HiFi-GAN, eq. 4)."""
    distances = [
        F.l1_loss(m, r.detach())
        for judged_real, judged_made in zip(real, made, strict=True)
        for r, m in zip(judged_real[:-1], judged_made[:-1], strict=True)
    ]
    return torch.stack(distances).mean()
