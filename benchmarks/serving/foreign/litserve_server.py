"""LitServe: one worker process, batches of what has come while the last one ran."""

from __future__ import annotations

from typing import Any

import litserve
from fastapi import Response

from benchmarks.serving.foreign.model import OPTIONS, load


class Api(litserve.LitAPI):
    """The model function in LitServe's life cycle."""

    def setup(self, device: str) -> None:
        self.generate = load()

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(inputs)

    def predict(self, batch: list[dict[str, Any]]) -> list[bytes]:
        return self.generate(batch)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="audio/wav")


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=OPTIONS["batch"], batch_timeout=OPTIONS["wait_s"]),
        accelerator="cpu",
        workers_per_device=1,
        timeout=False,
    )
    server.run(
        host="127.0.0.1",
        port=OPTIONS["port"],
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
