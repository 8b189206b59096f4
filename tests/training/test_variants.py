import math

import pytest
import torch

from models.attributes import by_name, measure
from models.mel import MelSpectrogram
from training.variants import Variants, mixed, sped_up

RATE = 16000
TIME = torch.arange(2 * RATE) / RATE


class OneTone:
    """Clips that are a tone of 440 Hz with five onsets per second."""

    def waveform(self, i):
        return 0.5 * torch.sin(2 * math.pi * 440 * TIME) * (TIME * 5 % 1 < 0.5)

    def mel(self, i):
        return MelSpectrogram()(self.waveform(i)[None])[0]


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_a_variant_is_as_long_and_as_high_as_its_speed_says(speed):
    mel = Variants(OneTone(), MelSpectrogram()).mel(0, speed)
    assert len(mel) == pytest.approx(200 / speed, abs=1)
    tone = 0.5 * torch.sin(2 * math.pi * 440 * speed * TIME)
    expected = MelSpectrogram()(tone[None])[0].mean(0).argmax()
    assert mel.mean(0).argmax() == expected


def test_attributes_of_a_variant_are_those_that_would_be_measured():
    faster = torch.nn.functional.interpolate(
        OneTone().waveform(0)[None, None], scale_factor=0.8, mode="linear"
    )
    expected = by_name(measure(faster[0, 0].numpy(), RATE))
    told = sped_up(by_name(measure(OneTone().waveform(0).numpy(), RATE)), 1.25)
    assert told["pitch"] == pytest.approx(expected["pitch"], abs=0.02)
    assert told["brightness"] == pytest.approx(expected["brightness"], abs=0.05)
    assert told["density"] == pytest.approx(expected["density"], rel=0.15)


def test_the_second_sound_of_a_mix_is_at_its_gain():
    low, high = (torch.sin(2 * math.pi * f * TIME) for f in (200.0, 3000.0))
    both = mixed(0.1 * low, high, 0.25)
    assert both.abs().max() == pytest.approx(0.5)
    spectrum = torch.fft.rfft(both).abs()
    assert spectrum[2 * 3000] / spectrum[2 * 200] == pytest.approx(0.25, rel=0.01)


def test_a_mix_with_silence_is_the_sound():
    tone = torch.sin(2 * math.pi * 200 * TIME)
    assert torch.allclose(mixed(tone, torch.zeros_like(tone), 1.0), 0.5 * tone / tone.abs().max(), atol=1e-3)
