"""Log-mel spectrograms: the only definition of the mel in the project.

AudioLDM's front end (Liu et al. 2023) exactly, so that vocoders and autoencoders trained on it fit: 16 kHz
mono, magnitude STFT (n_fft 1024, hop 160, Hann window 1024, reflect padding, no centring), 64 slaney mel
bands from 0 to 8 kHz, natural logarithm of the magnitude clamped at 1e-5. It does not normalise levels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn
from transformers.audio_utils import mel_filter_bank

from models.part import ConfigOnlyPart

FLOOR = 1e-5  # smallest magnitude of a band
LOG_FLOOR = math.log(FLOOR)  # the mel of digital silence


class MelSpectrogram(ConfigOnlyPart):
    """Waveform to log-mel. Has no weights.

    It is a part of the bundle, so that a vocoder and its mel stay together.
    """

    @register_to_config
    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 1024,
        hop_length: int = 160,
        win_length: int = 1024,
        n_mels: int = 64,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        log_floor: float = FLOOR,
    ) -> None:
        super().__init__()
        filters = mel_filter_bank(
            n_fft // 2 + 1, n_mels, f_min, f_max, sample_rate, norm="slaney", mel_scale="slaney"
        )
        self.filters = nn.Buffer(torch.from_numpy(filters).float())  # (n_fft // 2 + 1, n_mels)
        self.window = nn.Buffer(torch.hann_window(win_length))

    @property
    def frame_rate(self) -> float:
        """Mel frames per second, in Hz."""
        return float(self.config.sample_rate / self.config.hop_length)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return the log-mel (B, F, n_mels) of a waveform (B, T) in [-1, 1] at `sample_rate`.

        Raises:
            ValueError: not (B, T), or too short for one window with reflect padding.
        """
        return self.log_bands(self.spectrum(waveform).abs()).transpose(1, 2)

    def spectrum(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return the complex spectrum (B, n_fft // 2 + 1, F) of a waveform (B, T).

        Raises:
            ValueError: as for a call.
        """
        pad = (self.config.n_fft - self.config.hop_length) // 2
        if waveform.ndim != 2 or waveform.shape[-1] <= pad:
            raise ValueError(f"`waveform` must be (B, T) with T > {pad} samples, got {tuple(waveform.shape)}")
        padded = F.pad(waveform.float()[:, None], (pad, pad), mode="reflect")[:, 0]
        spectrum: torch.Tensor = torch.stft(
            padded,
            self.config.n_fft,
            hop_length=self.config.hop_length,
            win_length=self.config.win_length,
            window=self.window.float(),
            center=False,
            return_complex=True,
        )
        return spectrum

    @property
    def centres(self) -> torch.Tensor:
        """Centres of gravity of the bands' filters (n_mels,), in Hz."""
        filters = self.filters.float()
        bins = torch.linspace(0, self.config.sample_rate / 2, len(filters), device=filters.device)
        return bins @ filters / filters.sum(0)

    def spread(self, bands: torch.Tensor) -> torch.Tensor:
        """Return values of bins (B, n_fft // 2 + 1, F) from values of bands (B, n_mels, F).

        Each bin gets the mean of its bands, weighted by their filters; 0 where no band covers the bin.
        """
        filters = self.filters.float()
        covered = filters.sum(1, keepdim=True)
        return torch.einsum("km,bmf->bkf", filters / covered.where(covered > 0, 1.0), bands)

    def log_bands(self, magnitudes: torch.Tensor) -> torch.Tensor:
        """Return log-mels (B, n_mels, F) of magnitudes (B, n_fft // 2 + 1, F)."""
        bands = torch.einsum("bkf,km->bmf", magnitudes, self.filters.float())
        return torch.log(bands.clamp(min=self.config.log_floor))
