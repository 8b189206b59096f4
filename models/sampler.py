"""Row-wise sampler of the rectified flow: every row has its own length, time, number of steps, guidance and conditions.

The unit of work is `advance`: one denoising step for whichever rows are in the batch. A row may join before any step and leaves when its
own steps are done. Noise is drawn by the caller; nothing here is random, so a row's result does not depend on its company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from models.condition_encoder import ConditionTokens

Velocity = Callable[[torch.Tensor, torch.Tensor, ConditionTokens, torch.Tensor | None], torch.Tensor]


@dataclass
class Row:
    """State of one sound being generated.

    Attributes:
        latents: (L, C); noise at step 0, data after `num_inference_steps`.
        cond: condition tokens (1, K, D). uncond: what guidance points away from: the empty set, or a negative prompt.
        guidance_scale: w in uncond + w (cond - uncond) (Ho & Salimans 2022, eq. 6); at most 1 is off and costs no second pass.
        guidance_interval: times in [0, 1] between which guidance is on (Kynkäänniemi et al. 2024).
        loudness_dbfs: what its waveform is brought to (`models.character.at_loudness`), None for the level that it comes out at.
    """

    latents: torch.Tensor
    cond: ConditionTokens
    uncond: ConditionTokens
    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    step: int = 0
    loudness_dbfs: float | None = None
    previous_velocity: torch.Tensor | None = None

    @property
    def done(self) -> bool:
        return self.step >= self.num_inference_steps

    @property
    def t(self) -> float:
        """Time of the row: 0 is noise, 1 is data; steps are of equal length."""
        return self.step / self.num_inference_steps

    @property
    def guided(self) -> bool:
        """Whether the next step needs the unconditional pass."""
        low, high = self.guidance_interval
        return self.guidance_scale > 1 and low <= self.t < high


def advance(rows: Sequence[Row], velocity: Velocity) -> int:
    """Take one step of every row, in place, with one call of the network; return the row-forwards spent. All rows take it or, on an error, none.

    Adams-Bashforth of second order (the first step is Euler's): x += h (3/2 v_n - 1/2 v_(n-1)), the linear multistep form of
    DPM-Solver++(2M) in flow time.

    Raises:
        ValueError: a row is already done.
    """
    if any(row.done for row in rows):
        raise ValueError("a finished row cannot take another step")
    guided = [row for row in rows if row.guided]
    batch = [(row, row.cond) for row in rows] + [(row, row.uncond) for row in guided]
    v = _forward(batch, velocity)
    unconditional = {id(row): v[len(rows) + i] for i, row in enumerate(guided)}
    stepped = []
    for i, row in enumerate(rows):
        v_row = v[i, : len(row.latents)]
        if id(row) in unconditional:
            v_uncond = unconditional[id(row)][: len(row.latents)]
            v_row = v_uncond + row.guidance_scale * (v_row - v_uncond)
        slope = v_row if row.previous_velocity is None else 1.5 * v_row - 0.5 * row.previous_velocity
        stepped.append((row.latents + slope / row.num_inference_steps, v_row))
    for row, (latents, v_row) in zip(rows, stepped, strict=True):
        row.latents, row.previous_velocity = latents, v_row
        row.step += 1
    return len(batch)


def _forward(batch: list[tuple[Row, ConditionTokens]], velocity: Velocity) -> torch.Tensor:
    """Pad rows and condition sets to the longest and call the network once; return (N, L, C)."""
    lengths = [len(row.latents) for row, _ in batch]
    tokens = torch.nn.utils.rnn.pad_sequence([row.latents for row, _ in batch], batch_first=True)
    mask = None
    if min(lengths) != max(lengths):
        mask = (
            torch.arange(max(lengths), device=tokens.device)[None]
            < torch.tensor(lengths, device=tokens.device)[:, None]
        )
    size = max(c.tokens.shape[1] for _, c in batch)
    conditions = ConditionTokens(
        torch.cat([_pad(c.tokens, size) for _, c in batch]), torch.cat([_pad(c.mask, size) for _, c in batch])
    )
    t = torch.tensor([row.t for row, _ in batch], device=tokens.device, dtype=tokens.dtype)
    return velocity(tokens, t, conditions, mask)


def _pad(x: torch.Tensor, size: int) -> torch.Tensor:
    """Pad the second dimension of (1, K, …) with zeros to `size`."""
    if x.shape[1] == size:
        return x
    return torch.cat([x, x.new_zeros(1, size - x.shape[1], *x.shape[2:])], dim=1)
