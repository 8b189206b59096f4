"""A stand-in for a model on an accelerator: a step sleeps a constant time for up to `BATCH` rows. Makes silence."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.serving.accelerator import ROWS, SAMPLES_PER_S, call_s
from benchmarks.serving.load import MANIFEST, POISON
from clipsynth.schemas.generation import Format, JobPayload
from clipsynth.settings import Settings
from models.networks.condition_encoder import ConditionTokens
from models.sampler import SamplerRow
from worker.calibration import StepCost
from worker.main import model_info, run
from worker.model_protocol import ServingModel

BATCH = ROWS
TOKENS_PER_S = 10
_CONDITIONS = {
    poison: ConditionTokens(torch.full((1, 1, 1), float(poison)), torch.ones(1, 1, dtype=torch.bool))
    for poison in (False, True)
}


class Simulated(ServingModel):
    """A predictor whose steps take `step_s`."""

    manifest, dtype = MANIFEST, "float32"

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s

    def measure(self) -> StepCost:
        return StepCost(self.step_s, 1e-12, BATCH * TOKENS_PER_S)

    def num_tokens(self, duration_s: float) -> int:
        return round(TOKENS_PER_S * duration_s)

    def rows(self, payload: JobPayload, _: object = None) -> list[SamplerRow]:
        condition = _CONDITIONS[payload.prompt == POISON]
        latents = torch.zeros(1, self.num_tokens(payload.duration_s), 1)
        return [
            SamplerRow(latents, [condition], condition, payload.num_inference_steps, payload.guidance_scale)
            for _ in range(payload.num_outputs)
        ]

    def velocity(
        self, tokens: torch.Tensor, _: torch.Tensor, conditions: ConditionTokens, __: torch.Tensor | None
    ) -> torch.Tensor:
        if conditions.tokens.any():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(call_s(len(tokens), self.step_s, BATCH))
        return tokens

    def decode(self, rows: Sequence[SamplerRow], duration_s: float) -> list[np.ndarray]:
        return list(np.zeros((len(rows), round(duration_s * SAMPLES_PER_S)), np.float32))

    def log_mel(self, waveform: np.ndarray) -> np.ndarray:
        return np.zeros((len(waveform), 64), np.float32)

    def encode_response(self, waveform: np.ndarray, output_format: Format, *, comment: str) -> bytes:
        return waveform.tobytes()


def work(redis_url: str, data_dir: Path, step_s: float, **settings: object) -> None:
    """Be a worker process."""
    torch.set_num_threads(1)
    run(
        Settings(redis_url=redis_url, data_dir=data_dir, **settings),
        model_info(MANIFEST),
        lambda _: Simulated(step_s),
    )
