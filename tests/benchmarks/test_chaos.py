"""The short form of `make chaos`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_nothing_is_lost_while_workers_and_redis_are_killed():
    """A poison job kills its worker each time and fails; all others end as expected."""
    options = "--jobs 40 --kills 3 --restarts 1 --pauses 1 --disks 0 --memories 1 --gone 2 --poison 1"
    options += " --max-attempts 3"
    command = [sys.executable, "-m", "benchmarks.chaos", *options.split()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"(\d+) failed", result.stdout)[1]) == 1
    assert int(re.search(r"(\d+) expired", result.stdout)[1]) == 2
    assert int(re.search(r"(\d+) workers ended", result.stdout)[1]) >= 3
    assert int(re.search(r"(\d+) files noted at success", result.stdout)[1]) > 0
    assert int(re.search(r"(\d+) variations and continuations", result.stdout)[1]) > 0
