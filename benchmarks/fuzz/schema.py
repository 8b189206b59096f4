"""Requests that schemathesis derives from the served OpenAPI document: valid and invalid ones, and chains of them along links."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile

import httpx

from benchmarks.serving.service import Service
from clipsynth.security.api_keys import SCOPES, create_key

# `positive_data_acceptance` is left out: a schema cannot say what a bundle's limits are, or that prompt and image need each other.
EXCLUDED = "positive_data_acceptance"
PHASES = "examples,coverage,fuzzing,stateful"


def run(service: Service, *, requests: int, seed: int) -> tuple[int, bool]:
    """Return how many requests were made, at least `requests`, and whether all answers were as documented."""
    _, token = create_key(service.redis, "fuzz", SCOPES)  # from now on, who has no key is refused
    authorization = {"Authorization": f"Bearer {token}"}
    before = answered(service, authorization)
    document = httpx.get(f"{service.url}/openapi.json").json()
    operations = sum(len(path) for path in document["paths"].values())
    good = True
    while good and (made := answered(service, authorization) - before) < requests:
        examples = max(1, math.ceil((requests - made) / operations / 2))
        command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run"]
        command += [f"{service.url}/openapi.json", f"--phases={PHASES}", f"--exclude-checks={EXCLUDED}"]
        command += [f"--max-examples={examples}", f"--seed={seed}", "--continue-on-failure"]
        command += ["--header", f"Authorization:{authorization['Authorization']}"]
        with tempfile.TemporaryDirectory() as folder:  # for its notes
            good = subprocess.run(command, check=False, cwd=folder).returncode == 0
        seed += 1
    return answered(service, authorization) - before, good


def answered(service: Service, headers: dict[str, str]) -> int:
    """Return how many requests the API has answered, by its own count."""
    lines = httpx.get(f"{service.url}/metrics", headers=headers).text.splitlines()
    return round(
        sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("http_requests_total{"))
    )
