"""Row-wise sampler of the rectified flow: each row has its own length, steps, guidance and conditions.

The unit of work is `advance`: one denoising step of all rows in the batch. A row may join before any step,
and leaves after its own last step. The caller draws the noise; nothing here is random, so a row does not
depend on the others.

A row longer than the training clips is a group of windows. Each window is a row of the network, and after
every step the velocities are averaged where windows overlap (MultiDiffusion, Bar-Tal et al. 2023, eq. 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from models.conditioning.timeline import Plateau
from models.networks.condition_encoder import ConditionTokens
from models.schedule import share_at, time_at

Velocity = Callable[[torch.Tensor, torch.Tensor, ConditionTokens, torch.Tensor | None], torch.Tensor]

# Rows of the network in one call for a group of windows. A fixed number, because the batch changes the last
# digits, and a seed means a sound.
GROUP_ROWS = 16


@dataclass(frozen=True)
class RowWindow:
    """A window of a row, made as a row of the network by itself.

    Attributes:
        places: numbers of its tokens in the row (L',); in a loop they pass the end.
        shares: (L', 1), weight of its velocity in the mean of all windows there. The others are as of a row.
    """

    places: torch.Tensor
    shares: torch.Tensor
    conds: Sequence[ConditionTokens]
    uncond: ConditionTokens
    weights: tuple[float, ...] = (1.0,)
    guided_conds: Sequence[ConditionTokens] = ()


@dataclass
class SamplerRow:
    """State of one sound: one component, or several that are mixed at the end.

    Attributes:
        latents: (V, L, C), one component each; noise at step 0, data after `num_inference_steps`.
        conds: N condition tokens (1, K, D): all for the one component, or one for each of V = N components.
        uncond: the tokens that guidance points away from: the empty set, or a negative prompt.
        guidance_scale: w in uncond + w (cond - uncond), 1 more than the w of Ho & Salimans 2022, eq. 6. At 1
            or less there is no second pass.
        guidance_interval: times in [0, 1] between which guidance is on (Kynkäänniemi et al. 2024).
        time_shift: how far the steps are moved towards the noise (`models.schedule`); 1 for steps of equal
            length.
        weights: of the N conditions: in the guidance of one component, or in the mix of several.
        loudness_dbfs: RMS that the waveform is scaled to, in dB of full scale; None keeps its level.
        guided_conds: conditions that hold the guidance weight as a scalar, for a network with distilled
            guidance. They replace the second pass. Empty for other networks.
        windows: of a row that is made in windows; they replace its own conditions. Tokens in no window stay
            noise.
        start: share of the steps that the row leaves out, because it begins between noise and data (SDEdit,
            Meng et al. 2022).
        held: velocity (V, n, C) of the first n tokens, which leads to known data, and its shares there (n,
            1).
        parent: waveform that the sound varies or, with `held`, continues.
        loop: whether the end continues at the beginning.
        plateaus: levels of the sound of a timeline.

    Raises:
        ValueError: the numbers of components, conditions and weights do not fit.
    """

    latents: torch.Tensor
    conds: Sequence[ConditionTokens]
    uncond: ConditionTokens
    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    weights: tuple[float, ...] = (1.0,)
    step: int = 0
    loudness_dbfs: float | None = None
    previous_velocity: torch.Tensor | None = None
    guided_conds: Sequence[ConditionTokens] = ()
    time_shift: float = 1.0
    windows: Sequence[RowWindow] = ()
    loop: bool = False
    plateaus: Sequence[Plateau] = ()
    start: float = 0.0
    held: tuple[torch.Tensor, torch.Tensor] | None = None
    parent: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.conds) or self.components not in (1, len(self.conds)):
            got = f"{len(self.conds)} conditions and {len(self.weights)} weights"
            raise ValueError(f"{self.components} components do not fit {got}")
        if self.guided_conds and not len(self.guided_conds) == len(self.conds) == self.components:
            got = f"{self.components} components and {len(self.conds)} conditions"
            raise ValueError(f"{len(self.guided_conds)} guided conditions do not fit {got}")

    @property
    def components(self) -> int:
        """V, the number of components that are sampled for the sound."""
        return len(self.latents)

    @property
    def length(self) -> int:
        """L, tokens of each component."""
        return self.latents.shape[1]

    @property
    def num_tokens(self) -> int:
        """Tokens of a row of the network: all, or those of the longest window."""
        return max((len(window.places) for window in self.windows), default=self.length)

    @property
    def done(self) -> bool:
        return self.step >= self.num_inference_steps

    @property
    def t(self) -> float:
        """Time of the row: 0 is noise, 1 is data."""
        return self.time_after(self.step)

    def time_after(self, steps: int) -> float:
        """Return the time after this many steps."""
        share = self.start + (1 - self.start) * (steps / self.num_inference_steps)
        return time_at(share, self.time_shift)

    @property
    def guided(self) -> bool:
        """Whether guidance is on in the next step."""
        low, high = self.guidance_interval
        return self.guidance_scale > 1 and low <= self.t < high

    @property
    def needs_uncond(self) -> bool:
        """Whether the next step needs the unconditional pass."""
        return self.guided and not self.guided_conds

    @property
    def active_conditions(self) -> Sequence[ConditionTokens]:
        """The conditions of the next step."""
        return self.guided_conds if self.guided and not self.needs_uncond else self.conds

    @property
    def passes(self) -> int:
        """Rows of the network in the next step: with conditions, and without if `needs_uncond`."""
        if self.windows:
            return sum(view.passes for view in self.views())
        return len(self.conds) + (self.components if self.needs_uncond else 0)

    def views(self) -> list[SamplerRow]:
        """Return the row itself, or each window as a row of its present latents."""
        own = ("conds", "uncond", "weights", "guided_conds")
        return [
            replace(
                self,
                latents=self.latents[:, window.places],
                windows=(),
                **{name: getattr(window, name) for name in own},
            )
            for window in self.windows
        ] or [self]


def advance(rows: Sequence[SamplerRow], velocity: Velocity, group_rows: int = GROUP_ROWS) -> int:
    """Take one step of every row, in place, with one call of the network; return the row-forwards.

    A single row of many windows takes calls of `group_rows` rows of the network. Adams-Bashforth of second
    order for steps h of any length (the first is Euler's): x += h_n ((1 + r/2) v_n - r/2 v_(n-1)) with
    r = h_n / h_(n-1). On an error no row takes the step.

    Raises:
        ValueError: a row is already done.
    """
    if any(row.done for row in rows):
        raise ValueError("a finished row cannot take another step")
    groups = [row.views() for row in rows]
    views = [view for group in groups for view in group]
    needs_uncond = [view for view in views if view.needs_uncond]
    batch = [(view, i % view.components, c) for view in views for i, c in enumerate(view.active_conditions)]
    batch += [(view, i, view.uncond) for view in needs_uncond for i in range(view.components)]
    size = group_rows if len(rows) == 1 and rows[0].windows else len(batch)
    made = [_forward(batch[n : n + size], velocity) for n in range(0, len(batch), size)]
    parts = iter([v for call in made for v in call])
    conditional = [torch.stack([next(parts)[: view.length] for _ in view.conds]) for view in views]
    unconditional = {
        id(view): torch.stack([next(parts)[: view.length] for _ in view.latents]) for view in needs_uncond
    }
    combined = (
        _combine(view, v, unconditional.get(id(view))) for view, v in zip(views, conditional, strict=True)
    )
    stepped = []
    for row, group in zip(rows, groups, strict=True):
        own = [next(combined) for _ in group]
        v_row = _joined(row, own) if row.windows else own[0]
        if row.held is not None:
            known, share = row.held
            n = known.shape[1]
            v_row = torch.cat([torch.lerp(v_row[:, :n], known, share), v_row[:, n:]], dim=1)
        stepped.append((row.latents + _change(row, v_row), v_row))
    for row, (latents, v_row) in zip(rows, stepped, strict=True):
        row.latents, row.previous_velocity = latents, v_row
        row.step += 1
    return len(batch)


def varied(row: SamplerRow, data: torch.Tensor, parent: np.ndarray, strength: float) -> SamplerRow:
    """Return a new row that begins between its noise and data (1, L, C), those of the parent (T,).

    At strength 1 it begins with noise alone.
    """
    time = 1 - strength
    latents = strength * row.latents + time * data
    return replace(row, latents=latents, start=share_at(time, row.time_shift), parent=parent)


def continuing(row: SamplerRow, data: torch.Tensor, shares: torch.Tensor, parent: np.ndarray) -> SamplerRow:
    """Return a new row whose first tokens become data (1, n, C), the end of the parent (T,).

    Args:
        shares: (n, 1) of the data; the others are the network's.
    """
    held = data - row.latents[:, : data.shape[1]]
    return replace(row, held=(held, shares), parent=parent)


def _joined(row: SamplerRow, velocities: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the velocity (V, L, C) of a row from those of its windows, averaged by their shares."""
    total = torch.zeros_like(row.latents)
    shares = row.latents.new_zeros(row.length, 1)
    for window, v in zip(row.windows, velocities, strict=True):
        total.index_add_(1, window.places, window.shares * v)
        shares.index_add_(0, window.places, window.shares)
    return total / shares.clamp(min=1e-9)


def _change(row: SamplerRow, v: torch.Tensor) -> torch.Tensor:
    """Return the change of a row's latents (V, L, C) in the next step, for its velocity v."""
    length = row.time_after(row.step + 1) - row.t
    if row.previous_velocity is None:
        return length * v
    half = length / (row.t - row.time_after(row.step - 1)) / 2
    return length * ((1 + half) * v - half * row.previous_velocity)


def _combine(row: SamplerRow, v: torch.Tensor, v_uncond: torch.Tensor | None) -> torch.Tensor:
    """Return a row's velocity (V, L, C) after guidance.

    v (N, L, C) is the velocity with the row's conditions, v_uncond (V, L, C) the one without.

    One component with N conditions follows v_uncond + scale * sum_i w_i (v_i - v_uncond) (Liu et al. 2022,
    "Compositional Visual Generation with Composable Diffusion Models", eq. 11). The w_i are not normalised,
    as there, so another condition does not weaken the others. Without guidance the velocity is the mean of
    the v_i by weight.
    """
    together = row.components == 1 and row.weights != (1.0,)
    if v_uncond is None:
        return _weighted(row, v) / sum(row.weights) if together else v
    towards = v - v_uncond
    return v_uncond + row.guidance_scale * (_weighted(row, towards) if together else towards)


def _weighted(row: SamplerRow, v: torch.Tensor) -> torch.Tensor:
    """Return the sum (1, L, C) of v (N, L, C) by the row's weights."""
    total = row.weights[0] * v[:1]
    for i, weight in enumerate(row.weights[1:], 1):
        total = total + weight * v[i : i + 1]
    return total


def _forward(batch: list[tuple[SamplerRow, int, ConditionTokens]], velocity: Velocity) -> torch.Tensor:
    """Call the network once for components (row, number); return (N, L, C).

    Components and condition sets are padded to the longest.
    """
    components = [row.latents[i] for row, i, _ in batch]
    lengths = [len(component) for component in components]
    if min(lengths) == max(lengths):
        tokens, mask = torch.stack(components), None
    else:
        tokens = torch.nn.utils.rnn.pad_sequence(components, batch_first=True)
        mask = (
            torch.arange(max(lengths), device=tokens.device)[None]
            < torch.tensor(lengths, device=tokens.device)[:, None]
        )
    size = max(c.tokens.shape[1] for _, _, c in batch)
    conditions = ConditionTokens(
        torch.cat([_pad(c.tokens, size) for _, _, c in batch]),
        torch.cat([_pad(c.mask, size) for _, _, c in batch]),
    )
    t = torch.tensor([row.t for row, _, _ in batch], device=tokens.device, dtype=tokens.dtype)
    return velocity(tokens, t, conditions, mask)


def _pad(x: torch.Tensor, size: int) -> torch.Tensor:
    """Pad the second dimension of (1, K, …) with zeros to `size`."""
    if x.shape[1] == size:
        return x
    return torch.cat([x, x.new_zeros(1, size - x.shape[1], *x.shape[2:])], dim=1)
