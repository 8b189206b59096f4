"""The cost of a denoising step, which gives the batch limit and the time estimates.

It is measured at start, and learned from the steps that follow: at the start the machine may be busy.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from models.pipeline import ClipSynthPipeline
    from worker.model_protocol import ServingModel

logger = logging.getLogger(__name__)
MAX_ROWS = 64
# Time for the whole measurement.
BUDGET_S = 2.0
# The limit is the smallest batch with this share of the best throughput.
WORTH = 0.9
# A larger batch is tried for up to TRY_STEPS steps, until TRIED_STEPS of them were larger. If it was not
# worth it, a pause follows, which doubles each time.
TRY_STEPS, TRIED_STEPS = 60, 6
MIN_TRY_S, MAX_TRY_S = 5.0, 600.0
KEPT_RATES = 20
# Share that a step keeps of its weight with each later one.
FORGETTING = 0.99
EQUAL_SIZES = 1e-3
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


class CostLearner:
    """Keeps the cost of a step up to date while the worker works.

    While full steps are taken, it tries batches of twice the size now and then. They become the limit if they
    raise the throughput as much as `measure` asks for. For the thread that takes the steps.

    Attributes:
        limit: most tokens of a step from now on.
    """

    def __init__(self, cost: StepCost, num_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with a measured cost; `num_tokens` per row."""
        self.limit = self._accepted = cost.limit
        self._row, self._clock = num_tokens, clock
        self._most = max(cost.limit, MAX_ROWS * num_tokens)
        self._full: deque[float] = deque(maxlen=KEPT_RATES)
        self._tried: list[float] = []
        self._try_at, self._pause_s, self._left = 0.0, MIN_TRY_S, 0
        # Sums over steps, weighted by their age: of 1, x, y, x², xy, for tokens x and seconds y.
        self._sums = np.zeros(5)
        for tokens in (num_tokens, max(cost.limit, 2 * num_tokens)):
            self._add(tokens, cost.fixed_s + tokens * cost.token_s)

    @property
    def cost(self) -> StepCost:
        """The cost of a step by the latest steps."""
        n, x, y, xx, xy = self._sums
        # Steps of one size do not tell a fixed part from the rest; then all of it counts per token.
        weight = EQUAL_SIZES * (x / n) ** 2
        slope = (xy / n - x * y / n**2 + weight * y / x) / (xx / n - (x / n) ** 2 + weight)
        token_s = min(max(1e-12, slope), y / x)
        return StepCost(max(0.0, float(y - token_s * x) / n), float(token_s), self._accepted)

    def bound(self, limit: int) -> None:
        """Never use more tokens again: the device had no memory for more."""
        self.limit = self._accepted = self._most = limit
        self._left = 0

    def observe(self, tokens: int, seconds: float) -> int:
        """Take note of a step; return the limit of the next one."""
        self._add(tokens, seconds)
        if self._left:
            self._left -= 1
            if self._accepted < tokens <= self.limit:
                self._tried.append(tokens / seconds)
            if len(self._tried) == TRIED_STEPS or not self._left:
                self._decide()
        elif self._accepted < 2 * tokens <= 2 * self._accepted:
            self._full.append(tokens / seconds)
            is_full = tokens + self._row > self._accepted and len(self._full) >= TRIED_STEPS
            if is_full and 2 * self._accepted <= self._most and self._clock() >= self._try_at:
                self.limit, self._left, self._tried = 2 * self._accepted, TRY_STEPS, []
        return self.limit

    def _decide(self) -> None:
        # The first call of a shape also allocates memory and compiles kernels.
        rates = self._tried[1:]
        is_better = len(rates) > 1 and np.median(self._full) < WORTH * np.median(rates)
        if is_better:
            logger.info("%d tokens at a time are worth it, up to now %d", 2 * self._accepted, self._accepted)
            self._accepted *= 2
            self._full.clear()
            self._full.extend(rates)
        self._pause_s = MIN_TRY_S if is_better else min(2 * self._pause_s, MAX_TRY_S)
        self._try_at = self._clock() + (0.0 if is_better else self._pause_s)
        self.limit, self._left = self._accepted, 0

    def _add(self, tokens: int, seconds: float) -> None:
        self._sums = FORGETTING * self._sums + np.array(
            [1.0, tokens, seconds, float(tokens) ** 2, tokens * seconds]
        )


def learner(model: ServingModel, cost: StepCost) -> CostLearner:
    """Return a learner for a model with a measured cost."""
    return CostLearner(cost, model.num_tokens(model.manifest.duration_s))


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
