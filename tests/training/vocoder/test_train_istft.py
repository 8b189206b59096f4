import json

import pytest
import torch

from models.audio.corrections import find_harmonics
from models.audio.istft_vocoder import IstftVocoder
from models.audio.mel import MelSpectrogram
from training.vocoder.energy_distance import energy_distance
from training.vocoder.train_istft import IstftOptions, IstftTrainer, segments, train_istft

MEL = MelSpectrogram()
OPTIONS = {"batch_size": 2, "segment_frames": 24, "decay_steps": 2, "discriminator_width": 1}


class Noises:
    """Two short sounds of noise."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.waves = 0.1 * torch.randn(2, 8000, generator=g)
        self.mels = MEL(self.waves)
        self.sinusoids = find_harmonics(self.mels, MEL).sinusoids

    def __len__(self):
        return 2

    def mel(self, i):
        return self.mels[i]

    def waveform(self, i):
        return self.waves[i]

    def tones(self, i):
        return self.sinusoids[i]


def trainer(**options):
    torch.manual_seed(0)
    vocoder = IstftVocoder(dim=16, depth=1)
    vocoder.mean.fill_(-3.0)
    return IstftTrainer(vocoder, MEL, IstftOptions(**OPTIONS | options))


def test_noise_scores_better_than_its_mean_only_with_repulsion():
    g = torch.Generator().manual_seed(0)
    target, made = (0.1 * torch.randn(n, 16000, generator=g) for n in (8, 16))
    still = made[:8].repeat(2, 1)
    proper, alike = (energy_distance(x, target, MEL)[0].item() for x in (made, still))
    assert proper < 0.6 * alike
    assert energy_distance(target.repeat(2, 1), target, MEL, 0.0)[0].item() == pytest.approx(0, abs=1e-4)


def test_training_nears_the_sounds_and_discriminators_start_late():
    ours = trainer(steps=12, warmup_steps=1, adversarial_from=8, adversarial_warmup=2)
    batch = next(segments(Noises(), ours.options, 160))
    values = [ours.step(*batch) for _ in range(12)]
    assert values[7]["loss"] < values[0]["loss"]
    assert "referee" not in values[7]
    assert "adversarial" not in values[8]
    assert {"referee", "adversarial", "matching"} <= set(values[11])


def test_a_resumed_run_goes_on_from_its_state(tmp_path):
    train_istft(trainer(steps=2), Noises(), tmp_path)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved["done"] == 2
    longer = trainer(steps=4)
    train_istft(longer, Noises(), tmp_path, evaluate=lambda _: {"dev": 1.0}, evaluate_every=4)
    assert longer.done == 4
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[1]["dev"] == 1.0
    loaded = IstftVocoder.from_pretrained(tmp_path / "vocoder")
    assert torch.equal(loaded.head.weight, longer.average.head.weight)


def test_segments_of_a_step_do_not_depend_on_the_steps_before():
    options = IstftOptions(**OPTIONS, steps=3)
    *_, third = segments(Noises(), options, 160)
    [again] = segments(Noises(), options, 160, first=2)
    for a, b in zip(third, again, strict=True):
        assert torch.equal(a, b)
    assert third[0].shape == (2, 24, 64)
    assert third[1].shape == third[2].shape == (2, 3840)
