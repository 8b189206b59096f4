"""Build the untrained parts of the denoiser stage, and compute the rectified-flow loss over them.

Loss: |v(x_t, t, c) - (data - noise)|^2, x_t = (1 - t) noise + t data (Liu et al. 2022, eq. 1), t logit-normal
    (Esser et al. 2024, 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from models.networks.condition_encoder import KINDS, ConditionEncoder, ConditionTokens
from models.networks.denoiser import Denoiser
from training.data.batches import Batch
from training.data.clips import ClipSet
from training.recipe import Recipe, RunRecipe

MAX_BANK = 4096  # images that texts are projected on


def build_condition_encoder(
    recipe: RunRecipe, clips: ClipSet, means: torch.Tensor | None = None, scalars: Sequence[str] = ()
) -> ConditionEncoder:
    """Return an untrained condition encoder with the statistics and the bank of the training clips.

    Args:
        means: (kinds, D) that centre embeddings, instead of the clips' own.
        scalars: labels that conditions may have.
    """
    stride = -(-len(clips.train) // MAX_BANK)
    bank = torch.stack([clips.train.embeds(i).mean(0) for i in range(0, len(clips.train), stride)])
    condition_encoder = ConditionEncoder(
        embed_dim=len(clips.image_mean),
        scalars=scalars,
        text_templates=recipe.text_templates,
        text_centring=recipe.text_centring,
        anchor_share=recipe.anchor_share,
        anchor_tau=recipe.anchor_tau,
        anchor_likeness=recipe.anchor_likeness,
        text_sigma=recipe.text_sigma,
        bank_size=len(bank),
        bank_share=recipe.bank_share,
        bank_tau=recipe.bank_tau,
    )
    own = {"image": clips.image_mean, "text": clips.text_mean}
    condition_encoder.means.copy_(torch.stack([own[kind] for kind in KINDS]) if means is None else means)
    condition_encoder.bank.copy_(condition_encoder.centre(bank, "image"))
    return condition_encoder


def build_denoiser(recipe: Recipe, clips: ClipSet) -> Denoiser:
    """Return an untrained denoiser with the statistics of the training clips."""
    d = recipe.denoiser
    denoiser = Denoiser(
        dim=d.dim,
        depth=d.depth,
        heads=d.heads,
        dropout=d.dropout,
        condition_dim=len(clips.image_mean),
        n_mels=len(clips.mel_mean),
        frames_per_token=d.frames_per_token,
        prediction=d.prediction,
    )
    denoiser.mel_mean.copy_(clips.mel_mean)
    denoiser.mel_std.copy_(clips.mel_std)
    return denoiser


class FlowMatching(nn.Module):
    """Condition encoder and denoiser as one module, so that one call is one forward pass."""

    def __init__(self, condition_encoder: ConditionEncoder, denoiser: Denoiser) -> None:
        super().__init__()
        self.condition_encoder, self.denoiser = condition_encoder, denoiser

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the mean squared error of the velocity, averaged over rows, tokens and values."""
        conditions = self.conditions(batch, batch.scalars)
        x_t, v = self.path(batch)
        return F.mse_loss(self.denoiser(x_t, batch.t, conditions).float(), v)

    def conditions(self, batch: Batch, scalars: torch.Tensor) -> ConditionTokens:
        """Return the tokens of a batch's conditions with scalars (B, S), NaN without a label."""
        image, text = (self.condition_encoder.centre(batch.embeds, kind) for kind in KINDS)
        centred = torch.where(batch.is_text[..., None], text, image)
        noised = F.normalize(centred + batch.sigma[..., None] * batch.condition_noise, dim=-1)
        labels = scalars if self.condition_encoder.config.scalars else None
        return self.condition_encoder(noised, batch.weights, batch.sigma, batch.mask, labels)

    def path(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of a batch at their times (B, L, C), and the velocities of their straight paths."""
        data = self.denoiser.to_tokens(batch.mel)
        noise = batch.noise.view_as(data)
        return torch.lerp(noise, data, batch.t[:, None, None]), data - noise
