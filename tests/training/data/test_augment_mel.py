import math

import pytest
import torch

from models.audio.attributes import by_name, measure
from models.audio.mel import LOG_FLOOR, MelSpectrogram
from training.data.augment_mel import MelVariants

RATE = 16000
TIME = torch.arange(4 * RATE) / RATE


@pytest.fixture(scope="module")
def mel():
    return MelSpectrogram()


@pytest.fixture(scope="module")
def variants(mel):
    return MelVariants(mel)


def notes(per_second=3.0, hiss=0.01):
    """Decaying chords, with a hiss below them."""
    g = torch.Generator().manual_seed(0)
    chord = sum(torch.sin(2 * math.pi * f * TIME) / k for k, f in enumerate((300.0, 700.0, 1700.0), start=1))
    return 0.2 * chord * torch.exp(-6 * (TIME * per_second % 1)) + hiss * torch.randn(len(TIME), generator=g)


SOUNDS = [notes(rate, hiss) for rate in (1.0, 3.0, 5.0) for hiss in (0.001, 0.01, 0.1)]


def test_mel_attributes_follow_waveform_attributes(mel, variants):
    measured = [by_name(measure(sound.numpy(), RATE)) for sound in SOUNDS]
    log_mel = mel(torch.stack(SOUNDS))
    shown = {name: getattr(variants, name)(log_mel) for name in ("brightness", "noisiness", "density")}
    for name, values in shown.items():
        other = torch.tensor([one[name] for one in measured])
        assert (
            torch.corrcoef(torch.stack([values, other.log() if name == "noisiness" else other]))[0, 1] > 0.9
        )
    assert shown["brightness"].tolist() == pytest.approx([one["brightness"] for one in measured], abs=0.2)
    quiet = [i for i in range(len(SOUNDS)) if i % 3 < 2]  # in the loudest hiss one of the two hears no onsets
    assert [float(shown["density"][i]) for i in quiet] == pytest.approx(
        [measured[i]["density"] for i in quiet], abs=0.6
    )


@pytest.mark.parametrize(
    ("make", "levels", "shown"),
    [
        ("tilted", [-4.0, 0.0, 4.0], "brightness"),
        ("contrasted", [1.5, 1.0, 0.7], "noisiness"),
        ("paced", [0.5, 1.0, 2.0], "density"),
        ("pulsed", [0.0, 4.0, 8.0], "density"),
    ],
)
def test_each_variant_moves_its_attribute(mel, variants, make, levels, shown):
    log_mel = mel(notes(2.0)[None]).repeat(3, 1, 1)
    varied = getattr(variants, make)(log_mel, torch.tensor(levels))
    values = getattr(variants, shown)(varied)
    assert (values.diff() > 0.1).all()
    assert (varied >= LOG_FLOOR).all()
    none = levels.index(0.0 if 0.0 in levels else 1.0)
    torch.testing.assert_close(varied[none], log_mel[none])


def test_a_pace_keeps_the_pitch_and_loops(mel, variants):
    log_mel = mel(notes(2.0)[None])
    [double] = variants.paced(log_mel, torch.tensor([2.0]))
    torch.testing.assert_close(double[:200], log_mel[0, ::2][:200])
    torch.testing.assert_close(double[200:], log_mel[0, ::2])
    [half] = variants.paced(log_mel, torch.tensor([0.5]))
    torch.testing.assert_close(half[::2], log_mel[0, :200])


def test_silence_stays_silent(variants):
    silence = torch.full((1, 50, 64), LOG_FLOOR)
    for make, level in (("tilted", 6.0), ("contrasted", 0.5), ("paced", 2.0), ("pulsed", 5.0)):
        assert torch.equal(getattr(variants, make)(silence, torch.tensor([level])), silence)
    for shown in ("brightness", "noisiness", "density"):
        assert getattr(variants, shown)(silence).isfinite().all()
