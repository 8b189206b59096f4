"""Distil guidance into a trained denoiser, so that a guided step needs one pass instead of two.

Stage one of Meng et al. 2023, "On Distillation of Guided Diffusion Models". The student takes the guidance
scale as one more scalar and learns the teacher's velocity with guidance of that scale. Without the scalar it
stays the plain denoiser, for negative prompts and compositions, which take two passes.
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
from training.progress import ProgressView
from training.recipe import DistilRecipe, Recipe

UNGUIDED_SHARE = 0.25  # of the rows with a condition; they learn the velocity without guidance


class GuidanceDistillation(nn.Module):
    """Compute the distance between a student and its guided teacher; all randomness comes with the batch."""

    def __init__(
        self,
        teacher: FlowMatching,
        student: FlowMatching,
        scales: tuple[float, float],
        times: tuple[float, float],
    ) -> None:
        """Join the two models.

        Args:
            student: takes the teacher's scalars and, as the last one, `GUIDANCE`.
            scales: lowest and highest guidance scale.
            times: interval of times with guidance.
        """
        super().__init__()
        self.teacher, self.student = teacher.eval().requires_grad_(False), student
        self.scales, self.times = scales, times

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the mean squared error of the student's velocity over rows, tokens and values."""
        return self.distance(batch, self.draw_scales(batch))

    def draw_scales(self, batch: Batch) -> torch.Tensor:
        """Return the guidance scale per row (B,); 1 for rows that stay without guidance.

        These have no condition, lie outside `times`, or are a share of the rest.

        The draws come from the noise of each row's last condition, which is normal with unit expected norm.
        Few rows use that condition, and for those only two of its many values depend on the scale.
        """
        noise = batch.condition_noise[:, -1]
        chance, level = torch.special.ndtr(noise[:, :2].float() * math.sqrt(noise.shape[-1])).unbind(1)
        lowest, highest = self.scales
        first, last = self.times
        guided = batch.mask.any(1) & (batch.t >= first) & (batch.t < last) & (chance >= UNGUIDED_SHARE)
        return torch.where(guided, lowest + (highest - lowest) * level, 1.0)

    def distance(
        self, batch: Batch, scale: torch.Tensor, *, given: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the distance () for guidance scales (B,) of at least 1; scale 1 is given as no label.

        The last column of `batch.scalars` belongs to `GUIDANCE` and is ignored.

        Args:
            given: scales (B,) that the student gets; default: `scale`.
        """
        x_t, _ = self.teacher.path(batch)
        own = batch.scalars[:, :-1]
        target = self._target(batch, own, x_t, scale)
        given = scale if given is None else given
        column = torch.where(given > 1, guidance_as_scalar(given), math.nan)[:, None]
        conditions = self.student.conditions(batch, torch.cat([own, column], dim=1))
        return F.mse_loss(self.student.denoiser(x_t, batch.t, conditions).float(), target)

    @torch.no_grad()
    def _target(
        self, batch: Batch, own: torch.Tensor, x_t: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """Return the teacher's guided velocities (B, L, C); one call computes both branches."""
        wanted = self.teacher.conditions(batch, own)
        both = ConditionTokens(
            wanted.tokens.repeat(2, 1, 1), torch.cat([wanted.mask, torch.zeros_like(wanted.mask)])
        )
        v = self.teacher.denoiser(x_t.repeat(2, 1, 1), batch.t.repeat(2), both).float()
        conditional, unconditional = v.chunk(2)
        return unconditional + scale[:, None, None] * (conditional - unconditional)


def build_student(
    recipe: Recipe, d: DistilRecipe, teacher: tuple[ConditionEncoder, Denoiser]
) -> FlowMatching:
    """Return a copy of the teacher that takes a guidance scale.

    The new scalar's projection starts at random like the others; from zero it did not learn.
    """
    condition_encoder = teacher[0].changed(
        scalars=[*teacher[0].config.scalars, GUIDANCE],
        guidance_scales=[d.min_guidance, d.max_guidance],
        guidance_times=list(recipe.requests.guidance_interval),
    )
    nn.init.normal_(condition_encoder.scalar_projection[-1], std=SCALAR_STD)
    student = FlowMatching(condition_encoder, copy.deepcopy(teacher[1]))
    return student.float().requires_grad_(True)


def distil(
    recipe: Recipe,
    clips: ClipSet,
    teacher: tuple[ConditionEncoder, Denoiser],
    accelerator: Accelerator,
    view: ProgressView | None = None,
) -> tuple[ConditionEncoder, Denoiser]:
    """Train the student or resume; return its parts with the best averaged weights (EMA).

    The best ones are nearest to the teacher on dev clips with the bundle's default guidance.

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
    model = GuidanceDistillation(FlowMatching(*teacher), student, (d.min_guidance, d.max_guidance), times)

    def validation() -> list[Batch]:
        every = dev_batches(clips.dev, recipe, len(student.condition_encoder.config.scalars))
        return [batch for batch in every if times[0] <= float(batch.t[0]) < times[1]] or every

    def dev(batch: Batch) -> torch.Tensor:
        return model.distance(batch, torch.full_like(batch.t, asked))

    return train_parts(recipe, clips, student, Objective("distil", model, dev, validation), accelerator, view)
