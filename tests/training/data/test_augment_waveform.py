import math

import pytest
import torch

from training.data.augment_waveform import at_speed, mixed

RATE = 16000
TIME = torch.arange(2 * RATE) / RATE


def pulsed_tone():
    """440 Hz with five onsets per second."""
    return 0.5 * torch.sin(2 * math.pi * 440 * TIME) * (TIME * 5 % 1 < 0.5)


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("pitch", [440.0, 3000.0])
def test_a_speed_changes_the_pitch(speed, pitch):
    waves = torch.stack([torch.sin(2 * math.pi * pitch * TIME), torch.zeros_like(TIME)])
    made = at_speed(waves, torch.tensor([speed, 1.0]), RATE)
    expected = torch.sin(2 * math.pi * pitch * speed * TIME[:RATE])
    assert torch.allclose(made[0, 20:], expected[20:], atol=0.01)
    assert not made[1].any()


def test_a_wave_is_silent_after_its_end():
    made = at_speed(torch.ones(1, 1000), torch.tensor([2.0]), 800)
    assert made[0, 20:480] == pytest.approx(1, abs=0.01)
    assert not made[0, 520:].any()


def test_the_second_sound_of_a_mix_has_its_gain():
    low, high = (torch.sin(2 * math.pi * f * TIME) for f in (200.0, 3000.0))
    both = mixed(0.1 * low[None], high[None], torch.tensor([0.25]))[0]
    assert both.abs().max() == pytest.approx(0.5)
    spectrum = torch.fft.rfft(both).abs()
    assert spectrum[2 * 3000] / spectrum[2 * 200] == pytest.approx(0.25, rel=0.01)


def test_a_mix_with_silence_is_the_sound():
    tone = torch.sin(2 * math.pi * 200 * TIME)
    assert torch.allclose(
        mixed(tone[None], torch.zeros_like(tone)[None], torch.ones(1))[0],
        0.5 * tone / tone.abs().max(),
        atol=1e-3,
    )
