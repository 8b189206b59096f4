"""Measure the cost of a denoising step at start, which gives the batch limit and the time estimates."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from models.pipeline import ClipSynthPipeline

logger = logging.getLogger(__name__)
MAX_ROWS = 64
# Time for the whole measurement.
BUDGET_S = 2.0
# The limit is the smallest batch with this share of the best throughput.
WORTH = 0.9
# Two doublings must raise the throughput by this factor, or the measurement ends.
WORTHWHILE = 1.1


@dataclass(frozen=True)
class StepCost:
    """A step of n tokens takes `fixed_s` + n * `token_s` seconds; `limit` is the most tokens."""

    fixed_s: float
    token_s: float
    limit: int

    @property
    def step_s(self) -> float:
        """Seconds of a full step."""
        return self.fixed_s + self.limit * self.token_s


def measure(step_s: Callable[[int], float], num_tokens: int) -> StepCost:
    """Fit the cost to steps of 1, 2, 4, … rows.

    The limit is the smallest batch with nearly the best throughput, and it has fitted in memory.

    Args:
        step_s: runs one step of the given number of rows and returns its seconds.
        num_tokens: tokens per row.
    """
    started = time.perf_counter()
    sizes: list[int] = []
    seconds: list[float] = []
    rows = 1
    while rows <= MAX_ROWS:
        try:
            # The first call of a shape also allocates memory and compiles kernels.
            step_s(rows)
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
    """Measure a pipeline's denoiser with rows of the bundle's default duration."""
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
        # Wait for the device.
        float(batch[0].latents.sum())
        return time.perf_counter() - started

    return measure(step_s, num_tokens)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the device or the host ran out of memory; only some devices raise torch's own class."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def is_device_lost(error: Exception) -> bool:
    """Return whether the device's context is broken, so that every later call of this process fails."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def free_cache() -> None:
    """Return torch's cached memory to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
