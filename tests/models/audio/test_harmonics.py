import math

import pytest
import torch

from models.audio.corrections import add_harmonics, correct_to_mel, find_harmonics
from models.audio.mel import MelSpectrogram

RATE = 16000
MEL = MelSpectrogram()
HOP = MEL.config.hop_length
NOISE = 0.1 * torch.randn(1, 2 * RATE, generator=torch.Generator().manual_seed(0))
BUZZ = torch.zeros(1, 2 * RATE)
BUZZ[:, ::HOP] = (
    1.0  # what a vocoder gives that sees the same frame again and again: it repeats with every frame
)


def with_harmonics(waveforms, log_mel):
    return add_harmonics(waveforms, find_harmonics(log_mel, MEL), MEL)


def tone(*frequencies, level=0.2):
    t = torch.arange(2 * RATE) / RATE
    return sum(level * torch.sin(2 * math.pi * f * t) for f in frequencies)[None]


def strongest(waveform, count=1):
    """Return the frequencies in Hz of the highest peaks of the middle second's spectrum."""
    spectrum = torch.fft.rfft(waveform[0, RATE // 2 : 3 * RATE // 2] * torch.hann_window(RATE)).abs()
    inner = spectrum[1:-1]
    peaks = (inner > spectrum[:-2]) & (inner > spectrum[2:])
    return sorted((inner * peaks).topk(count).indices.add(1).tolist())


def vocoded(target):
    """Return a tone's waveform from its mel and a vocoder that knows only the frames' frequencies."""
    fitted = correct_to_mel(BUZZ, MEL(target), MEL)
    return correct_to_mel(with_harmonics(fitted, MEL(target)), MEL(target), MEL)


@pytest.mark.parametrize("frequency", [221, 371, 561, 697, 1318, 2637, 4435])
def test_a_tone_comes_out_at_its_own_frequency(frequency):
    target = tone(frequency)
    assert strongest(correct_to_mel(BUZZ, MEL(target), MEL))[0] % 100 == 0
    assert strongest(vocoded(target))[0] == pytest.approx(frequency, rel=0.004)


def test_a_tone_keeps_phase_and_level():
    target, made = tone(697), vocoded(tone(697))
    spectrum = torch.fft.rfft(made[0, RATE // 2 : 3 * RATE // 2] * torch.hann_window(RATE)).abs().square()
    [at] = strongest(made)
    assert spectrum[at - 4 : at + 5].sum() > 0.9 * spectrum.sum()
    middle = slice(RATE // 2, 3 * RATE // 2)
    assert made[0, middle].std() == pytest.approx(target[0, middle].std().item(), rel=0.1)


def test_tones_in_different_bands_stay_apart():
    chord = (311, 523, 784, 1244)
    made = strongest(vocoded(tone(*chord, level=0.1)), 4)
    assert made == [pytest.approx(f, rel=0.01) for f in chord]


def test_a_rising_tone_rises():
    t = torch.arange(2 * RATE) / RATE
    target = 0.2 * torch.sin(2 * math.pi * (400 * t + 100 * t**2))[None]
    made = vocoded(target)
    for start in (8000, 16000, 24000):
        part = made[:, start - 1024 : start + 1024] * torch.hann_window(2048)
        [at] = torch.fft.rfft(part).abs().argmax(1).tolist()
        assert at * RATE / 2048 == pytest.approx(400 + 200 * start / RATE, abs=16)


def test_noise_and_silence_are_kept():
    kept = with_harmonics(NOISE, MEL(NOISE))
    assert (kept - NOISE).square().mean() < 0.3 * NOISE.square().mean()
    silent = torch.zeros(1, RATE)
    torch.testing.assert_close(with_harmonics(silent, MEL(silent)), silent)


def test_a_row_does_not_depend_on_the_batch():
    targets = torch.cat([tone(300), tone(1000) + NOISE, NOISE])
    rows = NOISE.repeat(3, 1)
    together = with_harmonics(rows, MEL(targets))
    alone = torch.cat([with_harmonics(rows[i : i + 1], MEL(targets[i : i + 1])) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert torch.equal(together, with_harmonics(rows, MEL(targets)))


def test_tiny_mel_changes_stay_tiny_in_the_sound():
    """What a batch changes in a mel is some 1e-5; a tone that came and went by it would be heard."""
    log_mel = MEL(tone(311, 784, level=0.1) + 0.3 * NOISE)
    made = with_harmonics(NOISE, log_mel)
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = with_harmonics(NOISE, log_mel + 1e-5 * torch.randn(log_mel.shape, generator=g))
        assert (other - made).abs().max() < 1e-3
