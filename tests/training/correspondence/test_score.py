from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.model.correspondence import area
from clipsynth.cli import app
from models.audio.mel import MelSpectrogram
from models.baselines.wav2clip import Wav2Clip
from tests.support.planted import write_planted
from tests.support.wav2clip_weights import published
from training.correspondence.mismatch import exchange_sounds
from training.correspondence.network import (
    CorrespondenceOptions,
    Pairs,
    cross_fit,
    sound_features,
    train_network,
)
from training.correspondence.score import learned_scores, paired, quantiles_among, write_correspondence
from training.data.batches import sampling_weights
from training.data.clips import load_clips

pytestmark = pytest.mark.slow


FAST = CorrespondenceOptions(folds=4, repeats=1, hidden=64, dim=16, epochs=20, batch_size=32)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("planted") / "clips")


@pytest.fixture(scope="module")
def exchanged(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("exchanged") / "clips"
    return out, exchange_sounds(planted, out, share=0.2, seed=0)


def wrong_kinds(folder, planted):
    """Return (N,) whether a training clip's sound is of another kind than its own was."""
    before, after = load_clips(planted).train.index, load_clips(folder).train.index
    return np.array([a["attributes"] != b["attributes"] for a, b in zip(after, before, strict=True)])


# ------------------------------------------------------------------------------------------------- scores


def test_exchanged_sounds_score_low(planted, exchanged):
    train, dev = learned_scores(load_clips(exchanged[0]), FAST)
    wrong = wrong_kinds(exchanged[0], planted)
    assert 15 <= wrong.sum() <= 24
    assert area(train.numpy(), wrong) > 0.95
    assert float(dev.mean()) > float(train[torch.from_numpy(wrong)].mean()) + 1


def test_where_images_say_nothing_nothing_is_found(tmp_path):
    clips = write_planted(tmp_path / "random", matching=False, clips=160)
    exchange_sounds(clips, tmp_path / "out", share=0.4)
    train, _ = learned_scores(load_clips(tmp_path / "out"), FAST)
    assert area(train.numpy(), wrong_kinds(tmp_path / "out", clips)) == pytest.approx(0.5, abs=0.12)


def test_a_clip_is_scored_by_networks_without_its_video(monkeypatch):
    seen = []

    class Remembering:
        def __init__(self, pairs):
            self.videos = pairs.videos

        def score(self, pairs, bank):
            seen.append(torch.isin(pairs.videos, self.videos).any().item())
            return torch.arange(float(len(pairs)))

    monkeypatch.setattr(
        "training.correspondence.network.train_network", lambda pairs, *_: (Remembering(pairs), 0.0)
    )
    pairs = Pairs(torch.randn(160, 4), torch.randn(160, 4), torch.arange(160) // 2)
    scores, _, _ = cross_fit(pairs, pairs, CorrespondenceOptions(folds=4, repeats=2))
    assert seen[0::2] == [False] * 8  # the held-out fold
    assert seen[1::2] == [True] * 8  # the other table, here the same clips
    assert (scores != 0).all()


def test_random_pairs_are_not_memorised():
    """The epoch is chosen on other videos, so training stops before a network memorises its pairs."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    pairs = Pairs(torch.randn(160, 40, generator=g), torch.randn(160, 40, generator=g), torch.arange(160))
    options = CorrespondenceOptions(epochs=40, hidden=64, batch_size=64, noise=0.0, dropout=0.0)
    matcher, loss = train_network(pairs, options, g)
    assert loss > -0.3
    with torch.inference_mode():
        assert float(matcher.loss(pairs)) > math.log(160) - 1.0


def test_scores_are_repeatable_and_keep_the_random_state(planted):
    train, dev = paired(load_clips(planted))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = cross_fit(train, dev, FAST)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    torch.testing.assert_close(cross_fit(train, dev, FAST)[0], first[0], rtol=0, atol=0)


def test_twenty_videos_are_enough(tmp_path):
    folder = write_planted(tmp_path / "clips", clips=17, dev=3)
    record = json.loads(write_correspondence(folder).read_text())
    assert len(record["clips"]) == 20
    assert all(np.isfinite(row).all() for row in record["clips"].values())
    quantiles = [row[1] for row in record["clips"].values()]
    assert min(quantiles) < 0.1 < 0.9 < max(quantiles)


def test_too_few_videos_are_rejected_in_one_line(tmp_path):
    folder = write_planted(tmp_path / "clips", clips=11, dev=3)
    with pytest.raises(ValueError, match="at least 12 training videos, here are 11; prepare") as refused:
        write_correspondence(folder)
    assert "\n" not in str(refused.value)


def test_sound_features_are_finite_and_time_invariant():
    mel = MelSpectrogram()(0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)))[0]
    features = sound_features(mel, 100.0)
    assert features.shape == (8 * 64 + 227,)
    assert features.isfinite().all()
    torch.testing.assert_close(sound_features(mel.flip(0), 100.0), features, rtol=0, atol=1e-3)


# ---------------------------------------------------------------------------------------------- the file


def test_the_file_holds_the_quantile_of_each_clip(planted, tmp_path):
    folder = tmp_path / "clips"
    made = CliRunner().invoke(app, ["mismatch", str(planted), str(folder), "--share", "0.2"])
    assert made.output.startswith("24 clips mismatched")
    assert load_clips(folder).train.correspondence(0) is None
    assert CliRunner().invoke(app, ["correspondence", str(folder)]).exit_code == 0
    record = json.loads((folder / "agreement.json").read_text())
    assert record["method"] == "matching"
    clips = load_clips(folder)
    quantiles = [clips.train.correspondence(i) for i in range(len(clips.train))]
    assert sorted(quantiles) == pytest.approx((np.arange(120) + 0.5) / 120, abs=1e-4)
    assert area(np.array(quantiles), wrong_kinds(folder, planted)) > 0.95
    assert all(0 <= clips.dev.correspondence(i) <= 1 for i in range(len(clips.dev)))
    index = (folder / "index.jsonl").read_text()
    (folder / "index.jsonl").write_text(index.partition("\n")[2])
    with pytest.raises(ValueError, match="other clips"):
        load_clips(folder)
    (folder / "index.jsonl").write_text(index)


def test_quantiles_are_shares_below():
    found = quantiles_among(torch.tensor([0.0, 2.0, 9.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 3.0]))
    assert found.tolist() == [0.0, 0.375, 1.0, 0.75]


def test_wav2clip_scores_only_clips_of_its_space(planted, tmp_path):
    torch.save(published(Wav2Clip()), tmp_path / "Wav2CLIP.pt")
    with pytest.raises(ValueError, match="that of PackagedEncoder"):
        write_correspondence(planted, tmp_path / "Wav2CLIP.pt")
    folder = write_planted(tmp_path / "clips", clips=4, dev=1, dim=512)
    config = {"_class_name": "OpenClipEncoder", "model_name": "ViT-B-16"}
    (folder / "encoder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="that of ViT-B-16"):
        write_correspondence(folder, tmp_path / "Wav2CLIP.pt")
    (folder / "encoder" / "config.json").write_text(json.dumps(config | {"model_name": "ViT-B-32-quickgelu"}))
    record = json.loads(write_correspondence(folder, tmp_path / "Wav2CLIP.pt").read_text())
    assert record["method"] == "wav2clip"
    assert all(-1 <= score <= 1 for score, _ in record["clips"].values())
    assert len(record["clips"]) == 5


# --------------------------------------------------------------------------------------------- swapped data


def test_mismatched_clips_keep_their_image_and_swap_all_sound(planted, exchanged):
    folder, sound_of = exchanged
    before, after = load_clips(planted).train, load_clips(folder).train
    places = {line["key"]: i for i, line in enumerate(before.index)}
    assert len(sound_of) == 24
    assert set(sound_of) == set(sound_of.values())
    assert json.loads((folder / "swapped.json").read_text())["sound_of"] == sound_of
    for i, line in enumerate(after.index):
        j = places[sound_of.get(line["key"], line["key"])]
        assert (i == j) == (line["key"] not in sound_of)
        torch.testing.assert_close(after.waveform(i), before.waveform(j), rtol=0, atol=0)
        torch.testing.assert_close(after.mel(i), before.mel(j), rtol=0, atol=0)
        torch.testing.assert_close(after.embeds(i), before.embeds(i), rtol=0, atol=0)
        for name in ("gain", "attributes"):
            assert line[name] == before.index[j][name]
        assert line["video"] == before.index[i]["video"]
    assert list(load_clips(folder).dev.index) == list(load_clips(planted).dev.index)


def test_mismatching_can_be_repeated_and_copies_no_shard(planted, exchanged, tmp_path):
    sound_of = exchange_sounds(exchanged[0], tmp_path / "again", share=0.5, seed=3)
    assert sound_of == exchange_sounds(exchanged[0], tmp_path / "same", share=0.5, seed=3)
    before, after = load_clips(exchanged[0]).train, load_clips(tmp_path / "again").train
    places = {line["key"]: i for i, line in enumerate(before.index)}
    for i, line in enumerate(after.index):
        j = places[sound_of.get(line["key"], line["key"])]
        torch.testing.assert_close(after.mel(i), before.mel(j), rtol=0, atol=0)
    for shard in (tmp_path / "again" / "shards").iterdir():
        assert shard.is_symlink()
        assert shard.samefile(planted / "shards" / shard.name)


def test_swap_refuses_full_folders_and_shares_of_nobody(planted, exchanged, tmp_path):
    with pytest.raises(ValueError, match="not empty"):
        exchange_sounds(planted, exchanged[0])
    for share in (0.0, 0.01, 1.5):
        with pytest.raises(ValueError, match="2 or more"):
            exchange_sounds(planted, tmp_path / "out", share=share)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------ sampling weights


def test_sampling_weights_follow_the_sigmoid():
    weights = sampling_weights(torch.tensor([0.0, 0.3, 1.0, 0.5]))
    assert float(weights.sum()) == pytest.approx(1)
    assert (weights / weights[2]).tolist() == pytest.approx([0.0475, 0.5005, 1, 0.8816], abs=1e-3)
