"""From log-mels to waveforms: HiFi-GAN (Kong et al. 2020), its corrections, and mixing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from models.audio.corrections import (
    Harmonics,
    add_harmonics,
    add_noise_texture,
    correct_to_mel,
    find_harmonics,
)
from models.audio.istft_vocoder import NOISE_FRAMES, IstftVocoder, fixed_noise
from models.audio.level import MAX_PEAK
from models.audio.mel import MelSpectrogram

# 8 * 5 * 4 = 160 samples per mel frame, exactly, with these kernels.
UPSAMPLE_RATES = (8, 5, 4)
UPSAMPLE_KERNEL_SIZES = (16, 11, 8)
RESBLOCK_KERNEL_SIZES = (3, 7)
RESBLOCK_DILATION_SIZES = ((1, 3), (1, 3))

INPUT_NOISE = 0.5  # nepers, deviation of the noise that is added to a mel before the vocoder


ISTFT_PASSES = 8  # of the mel correction after an `IstftVocoder`
PIECE = 1000  # frames that are made at a time
CONTEXT = 128  # frames around a piece; more have no effect on it
CPU_FRAMES = 1000  # frames of all rows of a call on a CPU: more do not fit its caches
Vocoder: TypeAlias = SpeechT5HifiGan | IstftVocoder


def hop_length(vocoder: Vocoder) -> int:
    """Return the samples that a vocoder makes per mel frame."""
    if isinstance(vocoder, IstftVocoder):
        return int(vocoder.config.hop_length)
    return math.prod(vocoder.config.upsample_rates)


def build_vocoder(mel: MelSpectrogram, *, upsample_initial_channel: int = 192) -> SpeechT5HifiGan:
    """Return an untrained vocoder for `mel`.

    It standardises its input with its own buffers `mean` and `scale` (n_mels,).
    """
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=mel.config.n_mels,
            sampling_rate=mel.config.sample_rate,
            upsample_initial_channel=upsample_initial_channel,
            upsample_rates=list(UPSAMPLE_RATES),
            upsample_kernel_sizes=list(UPSAMPLE_KERNEL_SIZES),
            resblock_kernel_sizes=list(RESBLOCK_KERNEL_SIZES),
            resblock_dilation_sizes=[list(sizes) for sizes in RESBLOCK_DILATION_SIZES],
            normalize_before=True,
        )
    )


def load_vocoder(folder: Path) -> Vocoder:
    """Return the vocoder in a folder of a bundle, in float32.

    Raises:
        OSError: the folder cannot be read.
    """
    own = json.loads((folder / "config.json").read_text()).get("_class_name") == IstftVocoder.__name__
    vocoder = (IstftVocoder if own else SpeechT5HifiGan).from_pretrained(folder)
    return vocoder.float().eval().requires_grad_(False)


def vocode(
    vocoder: Vocoder, log_mel: torch.Tensor, mel: MelSpectrogram, *, loop: bool = False
) -> torch.Tensor:
    """Return waveforms (B, T) of log-mels (B, F, M) in float32, with corrections.

    A long sound is made in pieces with enough around them to be as one, so memory does not grow with it. The
    end of a loop continues at its beginning.
    """
    frames, hop = log_mel.shape[1], mel.config.hop_length
    rows = max(1, CPU_FRAMES // frames)
    if log_mel.device.type == "cpu" and len(log_mel) > rows:
        return torch.cat([vocode(vocoder, few, mel, loop=loop) for few in log_mel.split(rows)])
    first = CONTEXT if loop else 0
    index = torch.arange(-first, frames + first) % frames
    log_mel = log_mel[:, index.to(log_mel.device)] if loop else log_mel
    target = add_noise_texture(log_mel, mel, index)
    is_istft = isinstance(vocoder, IstftVocoder)
    harmonics = find_harmonics(target if is_istft else log_mel, mel, (first, frames) if loop else None)
    if is_istft:
        noise = fixed_noise(hop).view(NOISE_FRAMES, hop)[index % NOISE_FRAMES]
    else:
        noise = torch.randn(frames, log_mel.shape[2], generator=torch.Generator().manual_seed(0))[index]
    made = []
    for start in range(first, first + frames, PIECE):
        end = min(start + PIECE, first + frames)
        around = slice(max(0, start - CONTEXT), min(len(index), end + CONTEXT))
        own = Harmonics(
            harmonics.near[:, :, around], harmonics.sinusoids[:, around.start * hop : around.stop * hop]
        )
        waveforms = _vocode(vocoder, log_mel[:, around], target[:, around], noise[around], own, mel)
        made.append(waveforms[:, (start - around.start) * hop : (end - around.start) * hop])
    return torch.cat(made, dim=1)


def _vocode(
    vocoder: Vocoder,
    log_mel: torch.Tensor,
    target: torch.Tensor,
    noise: torch.Tensor,
    harmonics: Harmonics,
    mel: MelSpectrogram,
) -> torch.Tensor:
    """Return the waveforms (B, T) of one piece.

    An `IstftVocoder` has its own noise and tones. HiFi-GAN makes tones at a wrong pitch, so they are
    replaced. Where a mel stands still, HiFi-GAN repeats itself with every frame: the same noise is added to
    each log-mel, and the mel correction removes its effect on the levels.
    """
    if isinstance(vocoder, IstftVocoder):
        samples = noise.to(log_mel.device).flatten().expand(len(log_mel), -1)
        return correct_to_mel(vocoder(target, samples, harmonics.sinusoids), target, mel, ISTFT_PASSES)
    noisy = (log_mel + INPUT_NOISE * noise.to(log_mel)).to(vocoder.dtype)
    waveforms = vocoder(noisy).float().reshape(len(log_mel), -1)
    return correct_to_mel(add_harmonics(waveforms, harmonics, mel), target, mel)


def to_waveforms(
    vocoder: Vocoder,
    log_mel: torch.Tensor,
    mel: MelSpectrogram,
    *,
    gain: float,
    size: int,
    loop: bool = False,
) -> list[np.ndarray]:
    """Return waveforms (size,) of log-mels (B, F, M), scaled by `gain`; no peak is above 0.99."""
    waveforms = gain * vocode(vocoder, log_mel, mel, loop=loop)[:, :size]
    peaks = waveforms.abs().amax(-1, keepdim=True)
    return list((waveforms * (MAX_PEAK / peaks.clamp(min=MAX_PEAK))).cpu().numpy())


def mix(components: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Return components (V, T) as one waveform (T,) with a peak of at most 0.99.

    Each component is brought to the same RMS, summed by weight, and the sum is scaled to the RMS of the
    loudest component. A silent component stays silent.
    """
    levels = np.sqrt(np.square(components, dtype=np.float64).mean(-1))
    shares = np.divide(weights, levels, out=np.zeros_like(levels), where=levels != 0)
    total = shares @ components
    loudness = np.sqrt(np.square(total).mean())
    gain = min(levels.max() / loudness, MAX_PEAK / np.abs(total).max()) if loudness else 0.0
    mixed: np.ndarray = (gain * total).astype(np.float32)
    return mixed
