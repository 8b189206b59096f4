"""What a recipe says of batches, and what the batches hold."""

import pytest
import torch

from models.audio.mel import LOG_FLOOR
from models.conditioning.phrase_bank import PhraseBank
from tests.support.tiny_recipe import recipe
from training.data.batches import Batches, BatchMaker, sampling_weights
from training.data.clips import load_clips
from training.vocoder.train import Segments

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def test_an_epoch_has_each_clip_once_for_any_number_of_processes(prepared, tmp_path):
    made = recipe(prepared, tmp_path, 1, "denoiser.batch_size=2")
    clips = load_clips(prepared).train
    whole = Batches(clips, made)
    for epoch in range(3):
        seen = [i for n in range(len(clips) * 2) for i in whole.clip_numbers(n)][epoch * len(clips) :][
            : len(clips)
        ]
        assert sorted(seen) == list(range(len(clips)))
    keeping = Batches(clips, made, keep=True)
    keeps_none, keeps_all = (BatchMaker(batches, CPU) for batches in (whole, keeping))
    parts = [keeps_none(Batches(clips, made, rank=rank, world_size=2)[5]).tensors for rank in (0, 1)]
    all_rows = keeps_all(keeping[5]).tensors
    with pytest.raises(ValueError, match="kept"):
        keeps_none(keeping[5])
    with pytest.raises(ValueError, match="not a multiple of 3 processes"):
        Batches(clips, made, world_size=3)
    with pytest.raises(ValueError, match=r"vocoder\.batch_size.* 3 processes"):
        Segments(clips, made, 160, world_size=3)
    for *halves, full in zip(*parts, all_rows, strict=True):
        both = torch.stack(halves, dim=1).flatten(0, 1)
        torch.testing.assert_close(both, full, equal_nan=True, rtol=0, atol=1e-5)


def test_crops_have_the_recipes_minimum_and_end_in_silence(prepared, tmp_path):
    clips = load_clips(prepared).train
    made = recipe(prepared, tmp_path, 1, "denoiser.length_step=64", "vocoder.segment_frames=700")
    assert {Batches(clips, made)[n].frames for n in range(30)} == {128}  # of 64 to 160: 100 and more
    mels, waves = Segments(clips, made, 160)[0]
    assert (waves[:, 500 * 160 :] == 0).all()
    assert (mels[:, 500:] == LOG_FLOOR).all()


def test_batches_mix_clips_and_mask_attributes_by_the_recipe(prepared, tmp_path):
    made = recipe(
        prepared,
        tmp_path,
        1,
        "denoiser.batch_size=200",
        "denoiser.mix_share=0.3",
        "denoiser.speeds=[1.0, 1.25]",
        "denoiser.attribute_semitones=0",
        "denoiser.scalars=[brightness, pitch, agreement]",
    )
    clips = load_clips(prepared).train
    batches = Batches(clips, made)
    draw = batches[0]
    batch = BatchMaker(batches, CPU)(draw)
    changed = (draw.sources.speeds != 1) | (draw.sources.gains > 0)
    assert changed.float().mean() == pytest.approx(0.65, abs=0.1)
    assert batch.mel.isfinite().all()
    assert batch.mel.shape == batch.noise.shape == (200, draw.frames, 64)
    mixes = batch.weights.min(1).values < 1
    assert mixes.float().mean() == pytest.approx(0.3, abs=0.1)
    assert (batch.weights.max(1).values == 1).all()
    assert (batch.weights.min() >= 10**-0.5).item()
    dropped = ~batch.mask.any(1)
    assert batch.mask[mixes & ~dropped].all()
    told = ~batch.scalars.isnan()
    assert not told[mixes | dropped].any()
    assert told.shape[1] == 2  # nobody measured agreement
    assert told[~mixes & ~dropped, 0].float().mean() == pytest.approx(0.2, abs=0.1)
    assert ((batch.scalars[told] >= 0) & (batch.scalars[told] <= 1)).all()


def test_clips_that_correspond_are_drawn_more_often(prepared, tmp_path, monkeypatch):
    made = recipe(prepared, tmp_path, 1, "denoiser.correspondence_weighting=true", "denoiser.batch_size=400")
    clips = load_clips(prepared).train
    with pytest.raises(ValueError, match="clipsynth correspondence"):
        Batches(clips, made)
    monkeypatch.setattr(type(clips), "correspondence", lambda _, i: float(i == 0))
    share = Batches(clips, made).clip_numbers(0).count(0) / 400
    assert share == pytest.approx(float(sampling_weights(torch.eye(len(clips))[0])[0]), abs=0.1)


def test_phrases_replace_frames_in_the_recipes_share(prepared, tmp_path):
    made = recipe(prepared, tmp_path, 1, "denoiser.pseudo_text=0.5", "denoiser.batch_size=100")
    clips = load_clips(prepared)
    phrases = torch.nn.functional.normalize(torch.randn(2, 20, len(clips.image_mean)), dim=-1)
    small = Batches(clips.train, made, PhraseBank(phrases, clips.image_mean))[0].small
    assert small["is_text"].float().mean() == pytest.approx(0.5, abs=0.15)
    for embeds, is_text in zip(small["embeds"], small["is_text"], strict=True):
        near = torch.cdist(embeds, phrases.flatten(0, 1)).amin(1) < 1e-2
        assert torch.equal(near, is_text)
    with pytest.raises(ValueError, match="pseudo_text replaces frames"):
        recipe(prepared, tmp_path, 1, "denoiser.pseudo_text=0.5", "denoiser.condition=text")


def test_times_lie_where_the_recipe_says(prepared, tmp_path):
    """Logit-normal (Esser et al. 2024, eq. 19): half of them below the logistic function of its mean."""
    clips = load_clips(prepared).train
    for mean, std in ((0.0, 1.0), (-1.0, 1.2)):
        made = recipe(
            prepared,
            tmp_path,
            1,
            "denoiser.batch_size=400",
            f"denoiser.logit_mean={mean}",
            f"denoiser.logit_std={std}",
        )
        logits = Batches(clips, made)[0].small["t"].logit()
        assert logits.mean().item() == pytest.approx(mean, abs=0.2)
        assert logits.std().item() == pytest.approx(std, abs=0.15)


def test_an_unknown_scalar_is_an_error(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"brightness.*got colour"):
        recipe(prepared, tmp_path, 1, "denoiser.scalars=[colour]")
