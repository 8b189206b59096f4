"""The short form of `benchmarks.load redis`: its simulated workers match the current records of a job."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_simulated_workers_end_jobs():
    options = "--workers 2 --seconds 1 --batch 4 --job-s 0.1"
    command = [sys.executable, "-m", "benchmarks.load", "redis", *options.split()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    header, _, row = (line.strip("| ").split(" | ") for line in result.stdout.splitlines())
    figures = dict(zip(header, map(float, row), strict=True))
    assert figures["workers"] == 2
    assert figures["jobs/s"] > 0
