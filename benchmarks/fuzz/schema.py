"""Send requests that schemathesis derives from the OpenAPI document, chained by its links."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from benchmarks.load.service import ServiceProcesses
from clipsynth.security.api_keys import SCOPES, create_key

# A schema cannot express a bundle's limits, or that a request needs a prompt or an image.
EXCLUDED = "positive_data_acceptance"
CONFIG = Path(__file__).with_name("schemathesis.toml")
HOOKS = {"SCHEMATHESIS_HOOKS": "benchmarks.fuzz.schema_hooks", "PYTHONPATH": str(CONFIG.parents[2])}
PHASES = "examples,coverage,fuzzing,stateful"


def run(service: ServiceProcesses, *, requests: int, seed: int) -> tuple[int, bool]:
    """Return how many requests were made, at least `requests`, and whether all answers were as documented."""
    # the first key makes the API reject requests without one
    _, token = create_key(service.redis, "fuzz", SCOPES)
    authorization = {"Authorization": f"Bearer {token}"}
    before = answered(service, authorization)
    document = httpx.get(f"{service.url}/openapi.json").json()
    operations = sum(len(path) for path in document["paths"].values())
    good = True
    while good and (made := answered(service, authorization) - before) < requests:
        examples = max(1, math.ceil((requests - made) / operations / 2))
        command = [sys.executable, "-m", "schemathesis.cli", "--no-color", f"--config-file={CONFIG}", "run"]
        command += [f"{service.url}/openapi.json", f"--phases={PHASES}", f"--exclude-checks={EXCLUDED}"]
        command += [f"--max-examples={examples}", f"--seed={seed}", "--continue-on-failure"]
        command += ["--header", f"Authorization:{authorization['Authorization']}"]
        # schemathesis writes files into its working directory
        with tempfile.TemporaryDirectory() as folder:
            good = subprocess.run(command, check=False, cwd=folder, env=os.environ | HOOKS).returncode == 0
        seed += 1
    return answered(service, authorization) - before, good


def answered(service: ServiceProcesses, headers: dict[str, str]) -> int:
    """Return how many requests the API has answered, by its own count."""
    lines = httpx.get(f"{service.url}/metrics", headers=headers).text.splitlines()
    counts = (line.rpartition(" ")[2] for line in lines if line.startswith("http_requests_total{"))
    return round(sum(map(float, counts)))
