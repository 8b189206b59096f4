from pathlib import Path

import pytest
import torch

from models import ClipSynthPipeline
from models.encoders import PackagedEncoder
from training.data import load_clips
from training.loop import load_state
from training.prepare import prepare
from training.recipe import load_recipe
from training.train import train

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo.yaml"
TINY = [
    "vocoder.batch_size=2",
    "vocoder.upsample_initial_channel=32",
    "denoiser.batch_size=2",
    "denoiser.dim=32",
    "denoiser.depth=1",
    "denoiser.heads=2",
    "denoiser.max_frames=160",
    "denoiser.decay_share=0.0",  # a run that is prolonged must not have decayed
]


@pytest.fixture(scope="module")
def encoder():
    return PackagedEncoder()


@pytest.fixture(scope="module")
def prepared(videos, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    assert list(prepare(videos, out, encoder))[-1] == (6, 6)
    return out


def recipe(prepared, run, steps):
    return load_recipe(
        DEMO, [f"clips={prepared}", f"run={run}", f"vocoder.steps={steps}", f"denoiser.steps={steps}", *TINY]
    )


def test_train_makes_a_bundle_that_sounds(prepared, tmp_path):
    folder = train(recipe(prepared, tmp_path, 2))
    sound = ClipSynthPipeline.from_pretrained(folder)("a red thing", duration_s=1.0).audios[0]
    assert sound.shape == (16000,)
    assert torch.from_numpy(sound).isfinite().all()


def test_resumed_training_equals_training_that_was_not_stopped(prepared, tmp_path):
    train(recipe(prepared, tmp_path / "whole", 4))
    train(recipe(prepared, tmp_path / "halves", 2))
    train(recipe(prepared, tmp_path / "halves", 4))
    for stage in ("vocoder", "denoiser"):
        whole, halves = (
            load_state(tmp_path / run / stage / "state.pt")["weights"] for run in ("whole", "halves")
        )
        assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_unprepared_folder_and_bad_recipes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="prepare"):
        load_clips(tmp_path)
    for override in ("nonsense=1", "denoiser.dim=wide", "denoiser.dim"):
        with pytest.raises(ValueError, match=r"nonsense|dim"):
            load_recipe(DEMO, [override])


def test_a_run_starts_from_the_weights_of_a_bundle(prepared, tmp_path):
    folder = train(recipe(prepared, tmp_path / "first", 2))
    again = train(recipe(prepared, tmp_path / "second", 1), init=folder)
    first, second = (ClipSynthPipeline.from_pretrained(f) for f in (folder, again))
    ours, theirs = first.vocoder.conv_pre.weight, second.vocoder.conv_pre.weight
    assert 0 < (ours - theirs).abs().max() < 0.01  # one step of training away, not a new draw
    wider = recipe(prepared, tmp_path / "third", 1).model_copy(
        update={
            "vocoder": recipe(prepared, tmp_path, 1).vocoder.model_copy(
                update={"upsample_initial_channel": 64}
            )
        }
    )
    with pytest.raises(ValueError, match="vocoder"):
        train(wider, init=folder)


def test_export_takes_what_there_is_and_refuses_what_is_not(prepared, tmp_path):
    nothing = recipe(prepared, tmp_path, 2)
    with pytest.raises(ValueError, match="no trained vocoder"):
        train(nothing, stage="export")
    train(nothing, stage="vocoder")
    with pytest.raises(ValueError, match="no trained denoiser"):
        train(nothing, stage="export")
    train(nothing, stage="denoiser")
    states = [(tmp_path / stage / "state.pt").read_bytes() for stage in ("vocoder", "denoiser")]
    assert (train(nothing, stage="export") / "clipsynth.json").is_file()
    assert states == [(tmp_path / stage / "state.pt").read_bytes() for stage in ("vocoder", "denoiser")]
