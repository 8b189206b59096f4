"""Predict spectra at the mel frame rate and invert them by one STFT (Vocos, Siuzdak 2023).

The network never upsamples, so nearly all its operations run once per 10 ms frame. Two additions to Vocos:

* its own noise. A network that is a function of the mel alone repeats itself where the mel stands still, and
  cannot make rain. It is given white noise, whose spectrum it filters (as in DDSP, Engel et al. 2020), and
  learns by a spectral energy distance (Gritsenko et al. 2020) how much of it to use;
* a clock. The steady tones of the mel come in as sinusoids whose phase runs on (`models.audio.corrections`),
  and the network filters their spectrum as well.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from models.audio.corrections import find_harmonics, overlap_add
from models.audio.mel import MelSpectrogram

NOISE_FRAMES = 2048  # after which the noise repeats
LARGEST_LOG = 5.0  # of a magnitude, in nepers
FAINT = 1e-3  # magnitude of a sinusoid's bin below which it counts as silence


class ConvNeXtBlock(nn.Module):
    """A 1-D ConvNeXt block (Liu et al. 2022) over frames: (B, F, dim) to (B, F, dim)."""

    def __init__(self, dim: int, expansion: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.wide = nn.Linear(dim, expansion * dim)
        self.narrow = nn.Linear(expansion * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x.transpose(1, 2)).transpose(1, 2))
        return x + self.gamma * self.narrow(F.gelu(self.wide(y)))


class IstftVocoder(ModelMixin, ConfigMixin):
    """Log-mel (B, F, model_in_dim) to waveform (B, F * hop_length).

    It standardises its input with its own buffers `mean` and `scale` (model_in_dim,). Equal mels give equal
    sounds: the noise is a fixed sequence unless `noise` is given.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        model_in_dim: int = 64,
        sampling_rate: int = 16000,
        hop_length: int = 160,
        n_fft: int = 640,
        dim: int = 320,
        depth: int = 6,
        expansion: int = 3,
        noise_channels: int = 16,
        with_noise: bool = True,
        with_sinusoids: bool = True,
    ) -> None:
        """Build an untrained vocoder.

        Args:
            noise_channels: how many samples of each frame's noise the network sees; 0 for none.
            with_noise: whether the spectrum of white noise is filtered and added.
            with_sinusoids: whether that of the mel's steady tones is.

        Raises:
            ValueError: `n_fft` is not a multiple of `hop_length` of at least 2.
        """
        super().__init__()
        if n_fft % hop_length or n_fft < 2 * hop_length:
            raise ValueError(f"`n_fft` must be a multiple of `hop_length` {hop_length}, got {n_fft}")
        bins = n_fft // 2 + 1
        self.mean, self.scale = nn.Buffer(torch.zeros(model_in_dim)), nn.Buffer(torch.ones(model_in_dim))
        self.window = nn.Buffer(torch.hann_window(n_fft), persistent=False)
        self.embed = nn.Conv1d(model_in_dim + noise_channels, dim, 7, padding=3)
        self.embed_tones = nn.Linear(bins, dim, bias=False) if with_sinusoids else None
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, expansion, 1 / depth) for _ in range(depth))
        self.last_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, bins * (2 + with_noise + with_sinusoids))
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(
        self, log_mel: torch.Tensor, noise: torch.Tensor | None = None, tones: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return waveforms (B, F * hop_length) of log-mels (B, F, model_in_dim), in float32.

        Args:
            noise: white noise of unit variance (B, F * hop_length); None for the fixed one.
            tones: sinusoids of `log_mel` by `models.audio.corrections.find_harmonics`; None to find them.
        """
        c = self.config
        batch, frames, _ = log_mel.shape
        size = frames * c.hop_length
        if noise is None:
            known = fixed_noise(c.hop_length).to(log_mel.device)
            noise = known[torch.arange(size) % len(known)].expand(batch, -1)
        standard = (log_mel.float() - self.mean.float()) / self.scale.float()
        seen = torch.cat([standard, noise.view(batch, frames, -1)[..., : c.noise_channels]], -1)
        x = self.embed(seen.to(self.embed.weight.dtype).transpose(1, 2)).transpose(1, 2)
        sources = [self._spectrum(noise)] if c.with_noise else []
        if self.embed_tones is not None:
            if tones is None:
                mel = _mel_of(c.sampling_rate, c.hop_length, c.model_in_dim)
                tones = find_harmonics(log_mel, mel).sinusoids
            sources.append(self._spectrum(tones))
            level = (sources[-1].abs() / FAINT).clamp(min=1.0).log()
            x = x + self.embed_tones(level.to(x.dtype))
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        log_magnitude, phase, *gains = self.head(self.last_norm(x)).float().chunk(2 + len(sources), -1)
        spectrum = torch.polar(log_magnitude.clamp(max=LARGEST_LOG).exp(), phase)
        for gain, source in zip(gains, sources, strict=True):
            spectrum = spectrum + gain.clamp(max=LARGEST_LOG).exp() * source
        return self._waveform(spectrum, size)

    def _spectrum(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return the spectrum (B, F, bins) of a waveform (B, F * hop_length), one frame a hop."""
        c = self.config
        side = (c.n_fft - c.hop_length) // 2
        padded = F.pad(waveform.float(), (side, side))
        return torch.stft(
            padded, c.n_fft, c.hop_length, window=self.window.float(), center=False, return_complex=True
        ).transpose(1, 2)

    def _waveform(self, spectrum: torch.Tensor, size: int) -> torch.Tensor:
        """Return the waveform (B, size) of a spectrum (B, F, bins) by overlap-add."""
        c, window = self.config, self.window.float()
        side = (c.n_fft - c.hop_length) // 2
        pieces = torch.fft.irfft(spectrum, c.n_fft, dim=-1) * window
        squares = window.square().expand(1, spectrum.shape[1], -1)
        joined, overlap = (overlap_add(x, c.hop_length)[:, side : side + size] for x in (pieces, squares))
        return joined / overlap


@functools.lru_cache(maxsize=4)
def fixed_noise(hop_length: int) -> torch.Tensor:
    """Return the white noise (NOISE_FRAMES * hop_length,) that every sound is made with."""
    return torch.randn(NOISE_FRAMES * hop_length, generator=torch.Generator().manual_seed(0))


@functools.lru_cache(maxsize=4)
def _mel_of(sample_rate: int, hop_length: int, n_mels: int) -> MelSpectrogram:
    return MelSpectrogram(
        sample_rate=sample_rate, hop_length=hop_length, n_mels=n_mels, f_max=sample_rate / 2
    )
