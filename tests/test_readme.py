"""Run the README's commands on tiny videos and the tiny bundle, with two steps of training."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from clipsynth.cli import app
from tests.support.video_kinds import write_scenes

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SHORT = [
    "vocoder.steps=2",
    "distil.steps=2",
    "vocoder.batch_size=2",
    "vocoder.dim=32",
    "vocoder.depth=1",
    "denoiser.steps=2",
    "denoiser.batch_size=2",
    "denoiser.dim=32",
    "denoiser.depth=1",
    "denoiser.heads=2",
]


def commands():
    """Return the lines of the README's indented blocks that are commands, without their comments."""
    line = r"^    ((?:curl|make|docker|\.venv/bin/clipsynth) (?:[^\n]*\\\n)*[^\n]*)"
    found = re.findall(line, README, re.MULTILINE)
    return [shlex.split(command.replace("\\\n", " "), comments=True) for command in found]


def of(program, *words):
    return [c for c in commands() if c[0].endswith(program) and c[1 : 1 + len(words)] == list(words)]


def run(command, folder, **environment):
    if command[0].endswith("clipsynth"):
        command = [sys.executable, "-m", "clipsynth.cli", *command[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_readme_command_is_tested_or_exists():
    tried = of("curl") + of("clipsynth", "generate") + of("clipsynth", "prepare") + of("clipsynth", "train")
    others = [c for c in commands() if c not in tried]
    known = {
        name: [o for p in command.params for o in p.opts]
        for name, command in get_command(app).commands.items()
    }
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, word, *rest in others:
        if program == "make":
            assert word in targets
        else:  # `serve`, `evaluate` and `listen` have tests of their own
            assert program == ".venv/bin/clipsynth"
            assert {option for option in rest if option.startswith("-")} <= set(known[word])
    assert len(tried) == 7


@pytest.mark.parametrize(
    ("version", "says"), [("3, 11", None), ("3, 14", None), ("3, 10", "3.10"), ("3, 15", "3.15")]
)
def test_setup_accepts_the_supported_pythons(tmp_path, version, says):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"  # answers for another version, and makes an empty environment
    python.write_text(
        f"""#!/bin/sh
if [ "$1" = -c ]; then exec {sys.executable} -c "import sys; sys.version_info = ({version}, 0)
$2"; fi
mkdir -p .venv/bin && printf '#!/bin/sh\n' > .venv/bin/pip && chmod +x .venv/bin/pip
"""
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "setup", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if says is None:
        assert (done.returncode, (tmp_path / ".venv/ready").exists()) == (0, True), done.stderr
    else:
        assert done.returncode != 0
        assert f"this is {says}" in done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_curl_commands_work(served, tmp_path):
    service, _ = served
    service.wait_for_worker()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "dog.jpg")
    write_scenes(tmp_path / "dog.mp4", ["red"], seconds=1.0)
    printed = []
    for command in of("curl"):
        printed.append(run([word.replace("localhost:8000", service.url) for word in command], tmp_path))
    assert (tmp_path / "dog.wav").read_bytes()[:4] == b"RIFF"
    assert '"status":"queued"' in printed[-1]


@pytest.mark.slow
def test_the_generate_commands_write_their_files(tiny_bundle, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a dog\na cat\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPSYNTH_MODEL", str(tiny_bundle))
    for command in of("clipsynth", "generate"):
        CliRunner().invoke(app, [*command[1:], "--steps", "2"], catch_exceptions=False)
    assert (tmp_path / "dog.wav").is_file()
    assert len(list((tmp_path / "sounds").iterdir())) == 2


@pytest.mark.slow
def test_the_prepare_and_train_commands_make_a_bundle(videos, tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    [prepare], [train] = of("clipsynth", "prepare"), of("clipsynth", "train")
    said = run([word.replace("VIDEOS", str(videos)) for word in prepare] + ["--workers", "0"], tmp_path)
    assert said.splitlines()[-1].endswith("videos: 2 skipped; see data/demo/report.json")
    run(train + [word for override in SHORT for word in ("--set", override)], tmp_path)
    assert (tmp_path / "runs" / "demo" / "bundle" / "clipsynth.json").is_file()
