from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.audio.attributes import CONDITIONS, Scales
from models.audio.mel import MelSpectrogram
from training.data.attribute_labels import AttributeLabeller, LabelOffsets, draw_attribute_labels
from training.data.augment_mel import MelVariants
from training.data.augment_waveform import at_speed
from training.data.batches import Batches, BatchMaker
from training.data.clips import load_clips
from training.data.waveforms import FADE, ClipWaveforms
from training.recipe import load_recipe

CPU = torch.device("cpu")
DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo.yaml"


@pytest.fixture
def batches(prepared, tmp_path):
    made = load_recipe(
        DEMO,
        [
            f"clips={prepared}",
            f"run={tmp_path}",
            "denoiser.batch_size=120",
            "denoiser.max_frames=160",
            "denoiser.scalars=[brightness, pitch, noisiness, density]",
            "denoiser.attribute_semitones=4",
            "denoiser.attribute_tilt_db=5",
            "denoiser.attribute_contrast=1.5",
            "denoiser.attribute_tempo=2",
            "denoiser.attribute_pulse_rate=6",
        ],
    )
    return Batches(load_clips(prepared).train, made)


def test_a_row_is_augmented_only_in_its_labels(batches):
    draw = batches[0]
    told = ~BatchMaker(batches, CPU)(draw).scalars.isnan()
    brightness, pitch, noisiness, density = told.T
    s = draw.sources
    assert torch.equal(s.tilts != 0, brightness)
    assert torch.equal(s.contrasts != 1, noisiness)
    assert torch.equal(s.paces != 1, density)
    assert (s.speeds[pitch] != 1).all()
    assert s.speeds[pitch].log2().abs().max() <= 4 / 12
    assert torch.isin(s.speeds[~pitch], torch.tensor(batches.recipe.denoiser.speeds)).all()
    pulsed = s.pulses > 0
    assert (s.paces[pulsed] > 1).all()
    assert pulsed.any()
    assert 0.05 < brightness.float().mean() < 0.3
    assert s.contrasts.log().abs().max() <= np.log(1.5) + 1e-6
    assert s.paces.log2().abs().max() <= 1


def test_labels_are_measured_on_the_augmented_row(batches):
    draw, make = batches[0], BatchMaker(batches, CPU)
    names = list(batches.offsets.names)
    batch = make(draw)
    ones, none = torch.ones_like(draw.sources.tilts), torch.zeros_like(draw.sources.tilts)
    plain = replace(draw.sources, tilts=none, contrasts=ones, paces=ones, pulses=none)
    usual = make(replace(draw, sources=plain))
    pulsed = draw.sources.pulses > 3
    assert batch.mel[pulsed].mean() < usual.mel[pulsed].mean() - 0.3
    density = names.index("density")
    offsets = draw.offsets[pulsed, density]
    expected = make.label.quantiles(
        offsets + make.variants.density(batch.mel[pulsed]), make.label.grids[density]
    )
    torch.testing.assert_close(batch.scalars[pulsed, density], expected)
    for name in names:  # a variant changes what is told, not whether it is
        i = names.index(name)
        assert torch.equal(batch.scalars[:, i].isnan(), usual.scalars[:, i].isnan())


def test_an_unchanged_clip_has_its_measured_labels(prepared):
    clips = load_clips(prepared).train
    offsets = LabelOffsets(clips, CONDITIONS)
    tell = AttributeLabeller(offsets, MelVariants(MelSpectrogram()))
    scales = Scales.of(map(offsets.named, range(len(clips))))
    for clip in range(len(clips)):
        size = len(clips.pcm(clip))
        [told] = tell(offsets(clip, set(CONDITIONS), 0, size, 1.0)[None], clips.mel(clip)[None])
        expected = scales.quantiles(offsets.named(clip))
        for name, place in zip(CONDITIONS, told.tolist(), strict=True):
            assert place == pytest.approx(expected.get(name, np.nan), abs=0.02, nan_ok=True)
    assert offsets(0, set(), 0, 16000, 1.0).isnan().all()


def test_the_pitch_label_is_that_of_the_crop(prepared):
    clips = load_clips(prepared).train
    offsets = LabelOffsets(clips, ("pitch",))
    time = torch.arange(32000) / 16000
    low, high = (0.5 * torch.sin(2 * torch.pi * f * time) for f in (220.0, 440.0))
    wave = torch.cat([low, high])
    offsets.clips = SimpleNamespace(
        waveform=lambda _: wave, mel=lambda _: torch.zeros(9, 64), correspondence=lambda _: None
    )
    offsets.named = lambda clip: {"pitch": np.log(300.0)}

    def told(start, size, speed=1.0):
        return float(offsets(0, {"pitch"}, start, size, speed).exp())

    assert told(0, 32000) == pytest.approx(220, rel=0.01)
    assert told(34000, 16000) == pytest.approx(440, rel=0.01)
    assert told(60000, 20000) == pytest.approx(220, rel=0.01)  # goes on from the beginning
    assert told(0, 32000, 2.0) == pytest.approx(440, rel=0.01)
    offsets._tracks[0][:] = 0  # a noise
    assert told(0, 32000) == pytest.approx(300, rel=0.01)


def test_most_rows_have_no_attribute_labels():
    g = torch.Generator().manual_seed(0)
    drawn = [draw_attribute_labels((*CONDITIONS, "agreement"), g) for _ in range(2000)]
    untold = [told for told in drawn if not told & set(CONDITIONS)]
    assert 0.5 < len(untold) / len(drawn) < 0.62
    for part in (drawn, untold):
        assert sum("agreement" in told for told in part) / len(part) == pytest.approx(0.6, abs=0.06)
    assert sum("pitch" in told for told in drawn) / len(drawn) == pytest.approx(0.2, abs=0.03)


def test_label_quantiles_equal_those_of_requests(prepared):
    offsets = LabelOffsets(load_clips(prepared).train, ("density",))
    tell = AttributeLabeller(offsets, MelVariants(MelSpectrogram()))
    grid = [0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 5.0, 5.0]
    scales = Scales({"density": grid})
    tell.levels = torch.linspace(0, 1, len(grid))
    values = torch.tensor([-1.0, 0.0, 0.5, 1.0, 1.7, 2.0, 3.0, 5.0, 9.0, torch.nan])
    places = tell.quantiles(values, torch.tensor(grid)).tolist()
    expected = [scales.quantile("density", value) for value in values[:-1].tolist()]
    assert places[:-1] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(places[-1])


def test_a_looped_sound_has_no_click(prepared):
    clips = load_clips(prepared).train
    sounds = ClipWaveforms.of(clips, [0, 1])
    length = int(sounds.lengths[0])
    start = length - 1000
    [around] = sounds.read(torch.tensor([0]), torch.tensor([start]), 3000, loop=True)
    wave = clips.waveform(0)
    torch.testing.assert_close(around[: 1000 - FADE - 1], wave[start : length - FADE - 1])
    torch.testing.assert_close(around[1000 + FADE :], wave[FADE:2000])
    assert around[999] == around[1000] == 0
    within = sounds.read(torch.tensor([0]), torch.tensor([0]), 500, loop=True)[0]
    torch.testing.assert_close(within, wave[:500])


def test_a_faster_sound_has_no_aliasing():
    time = torch.arange(16000) / 16000
    low, high = (torch.sin(2 * torch.pi * f * time) for f in (1000.0, 6000.0))
    fast = at_speed((low + high)[None], torch.tensor([2.0]), 8000)[0]
    spectrum = torch.fft.rfft(fast[200:-200]).abs()
    frequencies = torch.fft.rfftfreq(7600, 1 / 16000)
    assert frequencies[spectrum.argmax()] == pytest.approx(2000, abs=5)
    assert spectrum[frequencies > 3000].max() < 0.02 * spectrum.max()
