import math

import pytest
import torch

from models.audio.corrections import correct_to_mel
from models.audio.mel import MelSpectrogram

RATE = 16000
MEL = MelSpectrogram()
NOISE = 0.1 * torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))


def chirp():
    """A tone that rises from 300 Hz and fades."""
    t = torch.arange(RATE) / RATE
    return (0.4 * torch.sin(2 * math.pi * (300 * t + 400 * t**2)) * torch.exp(-3 * t))[None]


def apart(waveforms, log_mel):
    return (MEL(waveforms)[:, 5:-5].clamp(min=-8) - log_mel[:, 5:-5].clamp(min=-8)).abs().mean().item()


def test_each_iteration_brings_the_mel_nearer():
    target = MEL(chirp())
    distances = [apart(correct_to_mel(NOISE, target, MEL, times), target) for times in (0, 1, 2, 4)]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.4 * distances[0]


def test_a_sound_that_fits_its_mel_is_unchanged():
    torch.testing.assert_close(correct_to_mel(chirp(), MEL(chirp()), MEL), chirp(), atol=0.01, rtol=0)


def test_level_and_tilt_are_corrected():
    """Not its mel alone: the waveform itself."""
    real = NOISE + chirp()
    tilt = 1 / (1 + torch.fft.rfftfreq(RATE, 1 / RATE) / 500)
    dull = torch.fft.irfft(torch.fft.rfft(real) * tilt)
    made = correct_to_mel(3 * dull, MEL(real), MEL)
    assert (made - real).square().mean() < 0.3 * (dull - real).square().mean()


def test_a_silent_mel_gives_silence():
    silent = torch.full_like(MEL(NOISE), math.log(1e-5))
    assert correct_to_mel(NOISE, silent, MEL, 4).abs().max() < 1e-3


@pytest.mark.parametrize("samples", [RATE // 2, RATE, 5 * RATE])
def test_a_row_keeps_its_length_in_any_batch(samples):
    rows = 0.1 * torch.randn(3, samples, generator=torch.Generator().manual_seed(1))
    targets = MEL(rows.roll(1, 0))
    together = correct_to_mel(rows, targets, MEL)
    alone = torch.cat([correct_to_mel(rows[n : n + 1], targets[n : n + 1], MEL) for n in range(3)])
    assert together.shape == rows.shape
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
