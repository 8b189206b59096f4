"""Teach a trained denoiser what guidance does with it, so that a guided step needs one pass of it in the place of two (Meng et al. 2023, "On Distillation of
Guided Diffusion Models", stage one).

The student is the denoiser with one scalar more beside its conditions, the weight of guidance, and learns the velocity that the denoiser has with guidance of that weight. Where
none is told it stays what it was, for negative prompts and compositions, which take two passes.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from models.networks.condition_encoder import (
    GUIDANCE,
    SCALAR_STD,
    ConditionEncoder,
    ConditionTokens,
    guidance_as_scalar,
)
from models.networks.denoiser import Denoiser
from training.data.batches import Batch
from training.data.clips import ClipSet
from training.denoiser.flow_matching import FlowMatching
from training.denoiser.train import Objective, train_parts
from training.denoiser.validation import dev_batches
from training.recipe import DistilRecipe, Recipe

UNTOLD_SHARE = 0.25  # of the rows with a condition: learn the velocity without guidance


class Guided(nn.Module):
    """The distance between a student and its teacher with guidance. What is random in it comes with the batch, so that a step can be recorded as a CUDA graph."""

    def __init__(
        self,
        teacher: FlowMatching,
        student: FlowMatching,
        scales: tuple[float, float],
        times: tuple[float, float],
    ) -> None:
        """Join the two.

        Args:
            student: knows the teacher's scalars and, after them, `GUIDANCE`.
            scales: lowest and highest weight of guidance.
            times: between which guidance is on.
        """
        super().__init__()
        self.teacher, self.student = teacher.eval().requires_grad_(False), student
        self.scales, self.times = scales, times

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the mean squared error of the student's velocity, averaged over rows, tokens and values, as the denoiser's own loss is."""
        return self.distance(batch, self.drawn(batch))

    def drawn(self, batch: Batch) -> torch.Tensor:
        """Return the weight of guidance of each row (B,), 1 where none is told: without a condition, outside `times`, and in a share of the others.

        Its draws are those of the noise of each row's last condition, normal and of unit expected norm: few rows have that condition, and for them two values of many are
        known with the weight.
        """
        noise = batch.condition_noise[:, -1]
        told, place = torch.special.ndtr(noise[:, :2].float() * math.sqrt(noise.shape[-1])).unbind(1)
        lowest, highest = self.scales
        first, last = self.times
        guided = batch.mask.any(1) & (batch.t >= first) & (batch.t < last) & (told >= UNTOLD_SHARE)
        return torch.where(guided, lowest + (highest - lowest) * place, 1.0)

    def distance(
        self, batch: Batch, scale: torch.Tensor, *, told: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the distance () for weights of guidance (B,) of at least 1; a weight of 1 is not told.

        `batch.scalars` has a column for `GUIDANCE`, its last, which is not read.

        Args:
            told: what the student is told (B,), by default what is asked of it.
        """
        x_t, _ = self.teacher.path(batch)
        own = batch.scalars[:, :-1]
        target = self._target(batch, own, x_t, scale)
        weight = scale if told is None else told
        column = torch.where(weight > 1, guidance_as_scalar(weight), math.nan)[:, None]
        conditions = self.student.conditions(batch, torch.cat([own, column], dim=1))
        return F.mse_loss(self.student.denoiser(x_t, batch.t, conditions).float(), target)

    @torch.no_grad()
    def _target(
        self, batch: Batch, own: torch.Tensor, x_t: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """Return the teacher's velocities (B, L, C) with guidance; with and without the conditions in one call."""
        wanted = self.teacher.conditions(batch, own)
        both = ConditionTokens(
            wanted.tokens.repeat(2, 1, 1), torch.cat([wanted.mask, torch.zeros_like(wanted.mask)])
        )
        v = self.teacher.denoiser(x_t.repeat(2, 1, 1), batch.t.repeat(2), both).float()
        led, free = v.chunk(2)
        return free + scale[:, None, None] * (led - free)


def build_student(
    recipe: Recipe, d: DistilRecipe, teacher: tuple[ConditionEncoder, Denoiser]
) -> FlowMatching:
    """Return a copy of the teacher that can be told a weight of guidance. What it is told begins like the other scalars, at random: beginning at nothing it was not learned."""
    condition_encoder = teacher[0].changed(
        scalars=[*teacher[0].config.scalars, GUIDANCE],
        guidance_scales=[d.lowest, d.highest],
        guidance_times=list(recipe.requests.guidance_interval),
    )
    nn.init.normal_(condition_encoder.scalar_projection[-1], std=SCALAR_STD)
    student = FlowMatching(condition_encoder, copy.deepcopy(teacher[1]))
    return student.float().requires_grad_(True)


def distil(
    recipe: Recipe, clips: ClipSet, teacher: tuple[ConditionEncoder, Denoiser], accelerator: Accelerator
) -> tuple[ConditionEncoder, Denoiser]:
    """Train the student or resume; return its parts with averaged weights (EMA), those nearest to the teacher on dev clips with the bundle's default guidance.

    Raises:
        ValueError: the recipe has no section `distil`, or the saved state is of another shape.
    """
    d = recipe.distil
    if d is None:
        raise ValueError("the recipe has no section distil")
    torch.manual_seed(recipe.seed)
    settings = {"steps": d.steps, "learning_rate": d.learning_rate}
    student = build_student(recipe, d, teacher)
    recipe = recipe.model_copy(update={"denoiser": recipe.denoiser.model_copy(update=settings)})
    times, asked = recipe.requests.guidance_interval, recipe.requests.guidance_scale
    model = Guided(FlowMatching(*teacher), student, (d.lowest, d.highest), times)

    def held_out() -> list[Batch]:
        every = dev_batches(clips.dev, recipe, len(student.condition_encoder.config.scalars))
        return [batch for batch in every if times[0] <= float(batch.t[0]) < times[1]] or every

    def dev(batch: Batch) -> torch.Tensor:
        return model.distance(batch, torch.full_like(batch.t, asked))

    return train_parts(recipe, clips, student, Objective("distil", model, dev, held_out), accelerator)
