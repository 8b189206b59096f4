"""Score sounds that hold noise by a spectral energy distance (Gritsenko et al. 2020, eq. 6).

A plain spectral distance is smallest at the median of all sounds with one mel, and the median of noise is no
noise. Here each sound is made twice, with other noise, and the two are rewarded for their distance from each
other: the expectation is smallest where made sounds are distributed as recorded ones are.
"""

from __future__ import annotations

import torch

from models.audio.mel import MelSpectrogram

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # n_fft, hop, window in samples
# About 100 dB below full scale: bands that a codec left empty stay empty, and classifiers of real sound hear
# the difference.
MAGNITUDE_FLOOR = 1e-3
LOG_MEL_FLOOR = -11.0
MEL_WEIGHT = 2.0

Features = list[tuple[torch.Tensor, torch.Tensor]]  # magnitudes and their logarithms, by resolution


def features(waveforms: torch.Tensor, mel: MelSpectrogram) -> tuple[Features, torch.Tensor]:
    """Return what sounds (B, T) are compared by: spectra at `RESOLUTIONS`, and the log-mel (B, F, M)."""
    spectra = []
    for n_fft, hop, window in RESOLUTIONS:
        hann = torch.hann_window(window, device=waveforms.device)
        spectrum = torch.stft(waveforms, n_fft, hop, window, hann, return_complex=True).abs().clamp(min=1e-7)
        spectra.append((spectrum, spectrum.clamp(min=MAGNITUDE_FLOOR).log()))
    return spectra, mel(waveforms).clamp(min=LOG_MEL_FLOOR)


def distance(
    a: tuple[Features, torch.Tensor], b: tuple[Features, torch.Tensor], like: Features
) -> torch.Tensor:
    """Return distances (B,) of `a` and `b`.

    Spectral convergence by the norm of `like`, L1 of log magnitudes, and `MEL_WEIGHT` times L1 of log-mels.
    """
    total = MEL_WEIGHT * (a[1] - b[1]).abs().mean((1, 2))
    for (x, log_x), (y, log_y), (reference, _) in zip(a[0], b[0], like, strict=True):
        norm = torch.linalg.norm(reference.flatten(1), dim=1).clamp(min=MAGNITUDE_FLOOR)
        convergence = torch.linalg.norm((x - y).flatten(1), dim=1) / norm
        total = total + (convergence + (log_x - log_y).abs().mean((1, 2))) / len(RESOLUTIONS)
    return total


def energy_distance(
    made: torch.Tensor, target: torch.Tensor, mel: MelSpectrogram, repulsion: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, and the mean distance of made to recorded sounds, both scalars.

    Args:
        made: (2 * B, T), the sounds of B mels with one noise and then with another.
        target: recordings (B, T).
        repulsion: weight of the distance between the two; 1 makes the score proper, 0 leaves the plain
            spectral distance.
    """
    real, (spectra, log_mels) = features(target, mel), features(made, mel)
    halves = [
        ([(x[part], log_x[part]) for x, log_x in spectra], log_mels[part])
        for part in (slice(0, len(target)), slice(len(target), None))
    ]
    near = torch.stack([distance(half, real, real[0]) for half in halves]).mean()
    apart = distance(halves[0], halves[1], real[0]).mean()
    return near - 0.5 * repulsion * apart, near.detach()
