"""Runs: resumed, stopped, in memory, in micro-batches and in several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.tiny_recipe import ROOT, recipe
from training.data.batches import Batches
from training.data.clips import load_clips
from training.denoiser import train as denoiser_stage
from training.loop import Terminated, describe_environment, git_commit
from training.recipe import load_recipe
from training.state import load_state
from training.train import train

pytestmark = pytest.mark.slow


def flat(tensors, prefix=""):
    """Nested dicts of tensors as one."""
    return {
        name: tensor
        for key, value in tensors.items()
        for name, tensor in (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        ).items()
    }


def test_resumed_training_equals_uninterrupted_training(prepared, tmp_path):
    adversarial = ("vocoder.adversarial_from=1", "vocoder.half_life_steps=1000000", "denoiser.dropout=0.1")
    train(recipe(prepared, tmp_path / "whole", 4, *adversarial))
    train(recipe(prepared, tmp_path / "halves", 2, *adversarial))
    train(recipe(prepared, tmp_path / "halves", 4, *adversarial))
    for stage in ("vocoder", "denoiser"):
        whole, halves = (
            flat(load_state(tmp_path / run / stage / "state.pt")["weights"]) for run in ("whole", "halves")
        )
        assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_a_machine_without_git_trains_too(monkeypatch):
    assert (git_commit() is not None) == (ROOT / ".git").exists()
    monkeypatch.setenv("PATH", "")
    assert describe_environment()["git_commit"] is None


def test_a_run_keeps_its_recipe_environment_and_logs(prepared, tmp_path):
    made = recipe(prepared, tmp_path, 2)
    train(made, stage="vocoder")
    train(made, stage="denoiser")
    folder = tmp_path / "denoiser"
    assert load_recipe(folder / "recipe.yaml") == made
    assert json.loads((folder / "environment.json").read_text())["packages"].keys() >= {"torch", "diffusers"}
    assert len((folder / "dev.tsv").read_text().splitlines()) == 1
    shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert shown.Tags()["images"] == ["denoiser/spectrograms"]
    assert shown.Tags()["audio"] == ["denoiser/samples"]
    (sample,) = shown.Audio("denoiser/samples")
    assert (sample.step, sample.sample_rate, sample.length_frames) == (2, 16000, 64000)  # one dev clip


def test_sigterm_ends_all_stages_and_the_command_resumes(prepared, tmp_path, monkeypatch):
    def made(name):
        return recipe(prepared, tmp_path / name, 4, "denoiser.evaluate_every=2", "vocoder.finetune_steps=1")

    whole = train(made("whole"))
    measure, stops = denoiser_stage.dev_loss, iter([True])

    def measured(*arguments):
        if next(stops, False):
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(*arguments)

    monkeypatch.setattr(denoiser_stage, "dev_loss", measured)
    with pytest.raises(Terminated) as stopped:
        train(made("ended"))
    assert stopped.value.code == 143
    assert load_state(tmp_path / "ended" / "denoiser" / "state.pt")["step"] < 4
    assert (
        load_state(tmp_path / "ended" / "vocoder" / "state.pt")["step"] == 4
    )  # not on mels of half a denoiser
    assert not (tmp_path / "ended" / "bundle").exists()
    ended = train(made("ended"))
    for part in ("denoiser/diffusion_pytorch_model", "vocoder/model"):
        one, other = (load_file(folder / f"{part}.safetensors") for folder in (whole, ended))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_micro_batches_move_the_weights_as_the_whole_batch_does(prepared, tmp_path, monkeypatch):
    steps = [
        recipe(
            prepared,
            tmp_path / str(k),
            3,
            "denoiser.batch_size=4",
            f"denoiser.gradient_accumulation_steps={k}",
            "denoiser.min_frames=160",
            "denoiser.length_step=0",
            "denoiser.warmup_steps=1",
            "bf16=false",
        )
        for k in (1, 2)
    ]
    clips = load_clips(prepared)
    assert Batches(clips.train, steps[0]).clip_numbers(0) == [
        i for n in (0, 1) for i in Batches(clips.train, steps[1]).clip_numbers(n)
    ]
    train(steps[0], stage="denoiser")
    whole = Batches.__getitem__

    def half(_, n):  # of the rows of step n // 2
        return whole(Batches(clips.train, steps[0], rank=n % 2, world_size=2), n // 2)

    monkeypatch.setattr(Batches, "__getitem__", half)
    train(steps[1], stage="denoiser")
    folders = [Path(made.run) / "denoiser" for made in steps]
    one, two = (load_state(folder / "state.pt")["weights"] for folder in folders)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=0)
    losses = [float((folder / "loss.tsv").read_text().split("\t")[1]) for folder in folders]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_in_memory_is_the_same_run(prepared, tmp_path, workers):
    """And so is one whose clips other processes read."""
    weights = []
    for name, more in (("plain", ("in_memory=false",)), ("kept", ("in_memory=true", f"workers={workers}"))):
        run = recipe(prepared, tmp_path / name, 3, "denoiser.mix_share=0.5", "vocoder.steps=3", *more)
        train(run, stage="denoiser")
        train(run, stage="vocoder")
        states = [load_state(Path(run.run) / part / "state.pt") for part in ("denoiser", "vocoder")]
        weights.append(flat({str(k): state["weights"] for k, state in enumerate(states)}))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_state_of_another_shape_or_half_a_state_is_refused(prepared, tmp_path):
    train(recipe(prepared, tmp_path, 1), stage="denoiser")
    with pytest.raises(ValueError, match=r"denoiser: .* another shape"):
        train(recipe(prepared, tmp_path, 2, "denoiser.dim=64"), stage="denoiser", fork_to=tmp_path / "fork")
    state = tmp_path / "denoiser" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.pt cannot be read"):
        train(recipe(prepared, tmp_path, 2), stage="denoiser")


def test_two_processes_train_as_one(prepared, tmp_path):
    """Same samples, loss curve and weights up to rounding, with half the batch in each process."""
    overrides = ("denoiser.batch_size=4", "bf16=false", "threads=1", "denoiser.warmup_steps=1")
    made = recipe(prepared, tmp_path / "one", 4, *overrides)
    train(made, stage="denoiser")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made.model_copy(update={"run": str(tmp_path / "two")}).model_dump()))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "clipsynth.cli",
    ]
    subprocess.run([*command, "train", str(path), "--stage", "denoiser"], check=True, cwd=ROOT, timeout=300)
    one, two = (load_state(tmp_path / name / "denoiser" / "state.pt") for name in ("one", "two"))
    assert one["step"] == two["step"] == 4
    for name in one["weights"]:
        torch.testing.assert_close(one["weights"][name], two["weights"][name], atol=2e-4, rtol=0)
    assert one["best"] == pytest.approx(two["best"], rel=1e-3)
