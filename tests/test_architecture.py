"""The floors: who may import whom, and what the API's process does not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"app", "worker", "training", "evaluation", "models", "clipsynth"}
MAY_IMPORT = {
    "app": {"clipsynth"},
    "worker": {"clipsynth", "models"},
    "training": {"models"},
    "evaluation": {"models", "clipsynth"},
    "models": set(),
    "clipsynth": set(),
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", sorted(OURS))
def test_nothing_points_upward(package):
    for path in (ROOT / package).rglob("*.py"):
        if path.name == "cli.py" or path.parent.name == "commands":  # the composition root
            continue
        assert set(imported(path)) & OURS - {package} <= MAY_IMPORT[package], path


def test_the_apis_process_loads_no_torch():
    code = "import sys, app.main; print([m for m in ('torch', 'numpy', 'soundfile', 'models', 'worker') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
