"""What is wrong with a recipe, a file or the disk is one line that names it."""

import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from clipsynth import cli
from models.media.shards import ShardReader
from models.networks.open_clip import OpenClipEncoder
from tests.support.planted import write_planted
from tests.support.shards import write_shard
from tests.support.videos import write_video
from training.data.clips import load_clips
from training.recipe import load_recipe
from training.state import load_state, save_state, steps_taken

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@contextmanager
def refused(message):
    with pytest.raises(ValueError, match=message) as error:
        yield
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("denoiser.heads=3", r"denoiser: dim must be a multiple of twice the heads: 2 \* 3, got 256$"),
        ("denoiser.mix_share=-3", r"denoiser\.mix_share: .* greater than or equal to 0, got -3"),
        ("denoiser.mix_share=1.5", r"denoiser\.mix_share"),
        ("denoiser.dropout=1.0", r"denoiser\.dropout"),
        ("denoiser.ema_decay=2.0", r"denoiser\.ema_decay"),
        ("denoiser.learning_rate=.inf", r"denoiser\.learning_rate"),
        ("denoiser.max_sigma=-1.0", r"denoiser\.max_sigma"),
        ("denoiser.density_balance=2.0", r"denoiser\.density_balance"),
        ("anchor_share=.nan", "anchor_share"),
        ("seed=-1", "seed"),
        ("seed=99999999999999999999", "seed"),
        ("workers=-2", "workers"),
        ("requests.guidance_interval=[0.5, 7.0]", r"requests\.guidance_interval"),
    ],
)
def test_values_out_of_range_are_named(override, message):
    with refused(message):
        load_recipe(RECIPES / "demo.yaml", [override])


def test_the_baselines_heads_divide_too():
    with refused(r"transformer: .* twice the heads: .*, got \d+$"):
        load_recipe(RECIPES / "specvqgan-demo.yaml", ["transformer.heads=3"])


@contextmanager
def full_disk(limit=1000):
    """Let no file grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_last_state(tmp_path):
    path = tmp_path / "state.pt"
    save_state({"step": 1}, path)
    with refused(r"state\.pt cannot be written .*its last version is kept"), full_disk():
        save_state({"step": 2, "weights": torch.zeros(10**6)}, path)
    assert load_state(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["state.pt"]
    with refused("cannot be written"):
        save_state({}, path / "below" / "a.file")


@pytest.mark.parametrize("damaged", [b"", b"PK\x03\x04 no archive", b"text"])
def test_a_damaged_state_is_named(tmp_path, damaged):
    (tmp_path / "state.pt").write_bytes(damaged)
    with refused(r"state\.pt cannot be read .*; delete it"):
        load_state(tmp_path / "state.pt")
    assert steps_taken(tmp_path / "state.pt") == 0


@pytest.mark.parametrize("at", [0, 8, 30])
def test_a_damaged_array_is_named_with_its_shard(tmp_path, at):
    arrays = {"mel": np.zeros((5, 4), np.float16)}
    offset, size = write_shard(tmp_path / "0.tar", [("a", {}, arrays)])["a"]["mel"]
    with (tmp_path / "0.tar").open("r+b") as file:
        file.seek(offset + at)
        file.write(b"\xff" * 20)
    with refused(rf"0\.tar is damaged at byte {offset}; delete it and prepare again"):
        ShardReader(tmp_path).read("0.tar", offset, size)


def test_damaged_statistics_are_named(tmp_path):
    folder = write_planted(tmp_path / "clips", clips=3, dev=1)
    (folder / "statistics.safetensors").write_bytes(b"12345678{}")
    with refused(r"statistics\.safetensors is damaged"):
        load_clips(folder)


@pytest.mark.parametrize("weights", ["damaged", "another"])
def test_damaged_clip_weights_are_named(tmp_path, weights):
    file = tmp_path / "clip.pt"
    file.write_bytes(b"no weights")
    if weights == "another":
        torch.save({"visual.conv1.weight": torch.zeros(3)}, file)
    with refused(r"clip\.pt cannot be loaded as weights of RN50 "):
        OpenClipEncoder("RN50", str(file))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train {0}", "{0} is a folder; name a file"),
        ("train nowhere.yaml", "nowhere.yaml does not exist in {0}; check the path"),
        ("export nowhere.yaml", "nowhere.yaml does not exist in {0}; check the path"),
        ("train {0}/broken.yaml", "{0}/broken.yaml is not YAML: "),
        ("prepare nowhere out", "nowhere is not a folder; name the one with your videos"),
        ("prepare {0} {0}/broken.yaml", "{0}/broken.yaml is a file, or lies below one; name a folder"),
        (
            "prepare {0} {0}/broken.yaml/out",
            "{0}/broken.yaml/out is a file, or lies below one; name a folder",
        ),
        ("prepare {0} out --captions nowhere.csv", "nowhere.csv does not exist in {0}; check the path"),
        ("merge out nowhere", "nowhere is no folder that this version prepared; "),
        ("correspondence nowhere", "nowhere holds no prepared clips; "),
        ("inspect nowhere", "nowhere is no bundle: "),
        ("evaluate --clips nowhere --queries {0}/none.json", "there is no file of labels nowhere"),
    ],
)
def test_a_missing_file_is_one_line_that_helps(tmp_path, monkeypatch, capsys, command, message):
    (tmp_path / "broken.yaml").write_text("a: [\nb: {\n")
    write_video(tmp_path / "a.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["clipsynth", *command.format(tmp_path).split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert str(ended.value).startswith(f"error: {message.format(tmp_path)}")
    assert capsys.readouterr().out == ""
    assert "\n" not in str(ended.value)
