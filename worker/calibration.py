"""What a denoising step costs, measured at start: how large a batch is worth it, and how long jobs will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from models.pipeline import ClipSynthPipeline

logger = logging.getLogger(__name__)
MAX_ROWS = 64
BUDGET_S = 2.0  # for the whole measurement
WORTH = 0.9  # the smallest batch with this share of the best throughput is the limit

WORTHWHILE = 1.1  # twice doubling must gain this much in throughput, or the measurement ends


@dataclass(frozen=True)
class StepCost:
    """A step of n tokens takes `fixed_s` + n * `token_s` seconds; `limit` is the most tokens of one network call."""

    fixed_s: float
    token_s: float
    limit: int

    @property
    def step_s(self) -> float:
        """Seconds of a full step."""
        return self.fixed_s + self.limit * self.token_s


def measure(step_s: Callable[[int], float], num_tokens: int) -> StepCost:
    """Fit the cost by steps of 1, 2, 4, … rows.

    The limit is the smallest batch whose throughput is near the best one, and never more than what was seen to fit in memory.

    Args:
        step_s: takes one step of so many rows and returns the seconds.
        num_tokens: tokens of each row.
    """
    from worker.engine import free_cache, is_out_of_memory

    started = time.perf_counter()
    sizes: list[int] = []
    seconds: list[float] = []
    rows = 1
    while rows <= MAX_ROWS:
        try:
            step_s(rows)  # the first of a shape also pays for its memory and its kernels
            measured = min(step_s(rows), step_s(rows))
        except (RuntimeError, MemoryError) as error:
            if not sizes or not is_out_of_memory(error):
                raise
            free_cache()
            break
        sizes.append(rows * num_tokens)
        seconds.append(measured)
        rates = np.array(sizes) / np.array(seconds)
        flat = len(rates) > 2 and rates[-2:].max() < WORTHWHILE * rates[:-2].max()
        if flat or time.perf_counter() - started + 6 * measured > BUDGET_S:
            break
        rows *= 2
    limit = sizes[int(np.argmax(rates >= WORTH * rates.max()))]
    token_s, fixed_s = np.polyfit(sizes, seconds, 1) if len(sizes) > 1 else (seconds[0] / sizes[0], 0.0)
    cost = StepCost(max(0.0, float(fixed_s)), max(1e-12, float(token_s)), limit)
    logger.info(
        "a step takes %.1f ms + %.2f ms per row of %d tokens; at most %d tokens (%d rows) at a time",
        1e3 * cost.fixed_s,
        1e3 * cost.token_s * num_tokens,
        num_tokens,
        limit,
        limit // num_tokens,
    )
    return cost


def measure_pipeline(pipeline: ClipSynthPipeline) -> StepCost:
    """Measure the denoiser of a pipeline with rows of the bundle's default duration."""
    import torch

    from models.networks.condition_encoder import ConditionTokens
    from models.sampler import SamplerRow, advance

    num_tokens = pipeline.num_tokens(pipeline.manifest.duration_s)
    device, dtype = pipeline.denoiser.device, pipeline.denoiser.dtype
    latents = torch.zeros(1, num_tokens, pipeline.denoiser.token_dim, device=device, dtype=dtype)
    with torch.inference_mode():
        empty: ConditionTokens = pipeline.condition_encoder.encode([[]])

    def step_s(rows: int) -> float:
        batch = [SamplerRow(latents, [empty], empty, 1, 1.0) for _ in range(rows)]
        started = time.perf_counter()
        with torch.inference_mode():
            advance(batch, pipeline.denoiser)
        float(batch[0].latents.sum())  # waits for the device
        return time.perf_counter() - started

    return measure(step_s, num_tokens)
