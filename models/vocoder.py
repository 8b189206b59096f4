"""Configuration of the vocoder: HiFi-GAN (Kong et al. 2020) of transformers, at the smallest published width."""

from __future__ import annotations

from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from models.mel import MelSpectrogram

# 5 * 4 * 2 * 2 * 2 = 160 samples per mel frame.
UPSAMPLE_RATES = (5, 4, 2, 2, 2)
UPSAMPLE_KERNEL_SIZES = (16, 16, 8, 4, 4)


def build_vocoder(mel: MelSpectrogram, *, upsample_initial_channel: int = 128) -> SpeechT5HifiGan:
    """Return an untrained vocoder for `mel`; it standardises its input with its own buffers `mean` and `scale` (n_mels,)."""
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=mel.config.n_mels,
            sampling_rate=mel.config.sample_rate,
            upsample_initial_channel=upsample_initial_channel,
            upsample_rates=list(UPSAMPLE_RATES),
            upsample_kernel_sizes=list(UPSAMPLE_KERNEL_SIZES),
            normalize_before=True,
        )
    )
