"""BentoML: one worker with a batchable method, adaptive batching."""

from __future__ import annotations

import base64
from typing import Any

import bentoml

from benchmarks.serving.foreign.model import OPTIONS, load


@bentoml.service(
    workers=1, traffic={"timeout": 600, "max_concurrency": 1000}, logging={"access": {"enabled": False}}
)
class Server:
    """The model function as a service."""

    def __init__(self) -> None:
        self.generate = load()

    @bentoml.api(
        batchable=True,
        max_batch_size=OPTIONS["batch"],
        max_latency_ms=OPTIONS["max_latency_ms"],
        route="/predict",
    )
    def predict(self, batch: list[dict[str, Any]]) -> list[str]:
        return [base64.b64encode(sound).decode() for sound in self.generate(batch)]
