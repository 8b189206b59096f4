"""The API's description."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_description_is_what_the_app_says():
    command = [sys.executable, "-m", "clipsynth.cli", "openapi"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed == (ROOT / "docs" / "openapi.json").read_text(), "clipsynth openapi > docs/openapi.json"
