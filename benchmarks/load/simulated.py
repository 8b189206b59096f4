"""A simulated model, and a worker with it: `python -m benchmarks.load.simulated STEP_S [ROWS]`.

A step sleeps `step_s` for up to `rows` rows, as an accelerator with room to spare; the sound is silence.
A row has one length whatever its duration, as in a network compiled for one shape. The worker takes its
settings from the environment.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from benchmarks.load.workload import MODEL, POISON, ROWS, call_s
from clipsynth.schemas.generation import Format, JobPayload
from clipsynth.settings import Settings
from models.bundle import Manifest
from models.networks.condition_encoder import ConditionTokens
from models.sampler import RowWindow, SamplerRow
from worker.calibration import StepCost
from worker.main import model_info, run
from worker.model_protocol import ServingModel
from worker.output_files import encode

MANIFEST = Manifest(name=MODEL, min_duration_s=0.5, max_duration_s=10.0, num_inference_steps=8)
TOKENS = 10
SAMPLES_PER_S = 100
_CONDITIONS = {
    poison: ConditionTokens(torch.full((1, 1, 1), float(poison)), torch.ones(1, 1, dtype=torch.bool))
    for poison in (False, True)
}


class SimulatedPredictor(ServingModel):
    """A predictor whose steps take `step_s` for up to `rows` rows."""

    manifest, dtype = MANIFEST, "float32"

    def __init__(self, step_s: float, rows: int = ROWS) -> None:
        self.step_s, self.at_once = step_s, rows

    def measure(self) -> StepCost:
        return StepCost(self.step_s, 1e-12, self.at_once * TOKENS)

    def num_tokens(self, _: float) -> int:
        return TOKENS

    def rows(self, payload: JobPayload, *_: object) -> list[SamplerRow]:
        condition = _CONDITIONS[payload.prompt == POISON]
        sampling = payload.num_inference_steps, payload.guidance_scale
        places = torch.arange(TOKENS * len(payload.windows(MANIFEST.max_duration_s))).split(TOKENS)
        own = [RowWindow(part, torch.ones(TOKENS, 1), [condition], condition) for part in places]
        latents, windows = torch.zeros(1, TOKENS * len(own), 1), own if len(own) > 1 else []
        return [
            SamplerRow(latents.clone(), [condition], condition, *sampling, windows=windows)
            for _ in range(payload.num_outputs)
        ]

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.ones((len(images), 1), np.float32)

    def velocity(
        self, tokens: torch.Tensor, _: torch.Tensor, conditions: ConditionTokens, __: torch.Tensor | None
    ) -> torch.Tensor:
        if conditions.tokens.any():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(call_s(len(tokens), self.step_s, self.at_once))
        return tokens

    def decode(self, rows: Sequence[SamplerRow], duration_s: float) -> list[np.ndarray]:
        return list(np.zeros((len(rows), round(duration_s * SAMPLES_PER_S)), np.float32))

    def log_mel(self, waveform: np.ndarray) -> np.ndarray:
        return np.zeros((len(waveform), 64), np.float32)

    def encode_response(self, waveform: np.ndarray, output_format: Format, *, comment: str) -> bytes:
        return encode(waveform, MANIFEST.sample_rate, output_format, comment=comment)


def work(settings: Settings, step_s: float, rows: int = ROWS) -> None:
    """Run a worker in this process until SIGTERM."""
    torch.set_num_threads(1)
    run(settings, model_info(MANIFEST), lambda _: SimulatedPredictor(step_s, rows))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    work(Settings(), float(sys.argv[1]), *map(int, sys.argv[2:]))
