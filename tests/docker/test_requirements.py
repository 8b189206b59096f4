"""What images install before any source is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def wanted(*roles):
    command = [sys.executable, "docker/requirements.py", "pyproject.toml", *roles]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name(line): line for line in lines}


def name(requirement):
    """As PEP 503 has names."""
    return re.sub(r"[-_.]+", "-", re.split("[<>=]", requirement)[0]).lower()


def test_the_api_has_no_torch():
    assert {"fastapi", "rq", "prometheus-client"} <= wanted("app").keys()
    assert not {"torch", "numpy", "soundfile", "transformers"} & wanted("app").keys()


def test_training_has_what_a_worker_has():
    assert wanted("worker").items() <= wanted("train").items()
    assert "av" in wanted("train")


def test_an_extra_adds_to_a_role():
    assert wanted("app", "s3").keys() - wanted("app").keys() == {"s3fs"}


@pytest.mark.parametrize("role", ["app", "worker", "train"])
def test_every_requirement_is_pinned(role):
    pinned = {name(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert wanted(role, "s3").keys() <= pinned
