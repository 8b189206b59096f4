"""Training from an S3-compatible store (moto on loopback) equals training from a folder.

Needs the extras `s3` and `s3-test`.
"""

import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
import yaml

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

from tests.support.planted import planted_recipe, write_planted
from tests.support.s3 import s3_server
from training.data.clips import load_clips
from training.state import load_state
from training.train import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "denoiser.mix_share=0.5",
    "denoiser.decay_share=0.0",
    "denoiser.warmup_steps=1",
    # Each process draws its own dropout.
    "denoiser.dropout=0.0",
    "bf16=false",
)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A prepared folder, and the URL of its copy in a store."""
    folder = write_planted(tmp_path / "local", clips=10, dev=2)
    with s3_server(monkeypatch):
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        fs.mkdir("clips")
        fs.put(str(folder), "clips/planted", recursive=True)
        yield folder, "s3://clips/planted"
        fsspec.filesystem("s3").clear_instance_cache()


def weights(run):
    return load_state(run / "denoiser" / "state.pt")["weights"]


def test_a_resumed_run_and_two_processes_equal_a_local_run(stored, tmp_path):
    folder, url = stored
    cache = f"cache={tmp_path / 'cache'}"
    train(planted_recipe(folder, tmp_path / "local-run", "denoiser.steps=4", *SETTINGS), stage="denoiser")
    for steps in (2, 4):
        made = planted_recipe(url, tmp_path / "one", f"denoiser.steps={steps}", cache, *SETTINGS)
        train(made, stage="denoiser")
    one = weights(tmp_path / "one")
    assert all(torch.equal(value, one[name]) for name, value in weights(tmp_path / "local-run").items())
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made.model_copy(update={"run": str(tmp_path / "two")}).model_dump()))
    command = "-m torch.distributed.run --standalone --nproc_per_node=2 -m clipsynth.cli train"
    subprocess.run(
        [sys.executable, *command.split(), str(path), "--stage", "denoiser"],
        check=True,
        cwd=ROOT,
        timeout=300,
    )
    two = weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-4, rtol=0)


def test_workers_read_from_the_store_too(stored, tmp_path):
    folder, url = stored
    for name, clips, more in (("a", folder, ()), ("b", url, ("workers=1", f"cache={tmp_path / 'cache'}"))):
        made = planted_recipe(clips, tmp_path / name, "denoiser.steps=3", *SETTINGS, *more)
        train(made, stage="denoiser")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.usefixtures("stored")
def test_a_bucket_that_is_missing_or_closed_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="s3://nothing/here holds no prepared clips"):
        load_clips("s3://nothing/here", cache=tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(ValueError, match=r"s3://other/here cannot be read \(.*127\.0\.0\.1:9") as error:
        load_clips("s3://other/here", cache=tmp_path)
    assert "\n" not in str(error.value)
