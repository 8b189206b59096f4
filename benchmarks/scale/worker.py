"""A worker with the simulated model, as a command: `python -m benchmarks.scale.worker REDIS_URL FOLDER STEP_S`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from benchmarks.serving.simulated import work

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    url, folder, step_s = sys.argv[1:4]
    work(url, Path(folder), float(step_s))
