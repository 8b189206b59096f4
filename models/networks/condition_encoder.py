"""From embeddings of texts and images to condition tokens for the denoiser. Knows no text and no image, only their embeddings.

Embeddings of the two kinds lie in separate cones (Zhang et al. 2024, "Connect, Collapse, Corrupt"): each kind is centred with its own
mean, and in training noise of level sigma is added, with sigma told to the network, so that at request time a text can be
presented as what it is: an image embedding known only roughly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

Kind = Literal["image", "text"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# own: a text less the texts' mean. shift: moved by the difference of the means, then as an image. image: as if it were an image.
TextCentring = Literal["own", "shift", "image"]
GUIDANCE = "guidance"  # the scalar of a denoiser that has learned what guidance does (`training.distil`): its weight, as `distilled_guidance_range` has it
MAX_GUIDANCE = 20.0  # the weight that is told as 1
Weight = TypeVar("Weight", float, torch.Tensor)
SCALAR_STD = 0.5  # of the weights by which scalars are told, to begin with
SHOWN_BY = 3  # images of the bank that must be like a class
WAVES = 4  # cosines by which a scalar is told to the network, beside itself


def distilled_guidance_range(scale: Weight) -> Weight:
    """Return what is told of weights of guidance in 1..`MAX_GUIDANCE`: 0..1."""
    return (scale - 1) / (MAX_GUIDANCE - 1)


@dataclass(frozen=True)
class Condition:
    """One element of a request's condition set.

    `embedding` (D,) of unit norm; `weight` > 0 scales its token (1 as trained); `sigma` >= 0 is how uncertain the embedding is, None for the
    bundle's value of its kind.
    """

    embedding: torch.Tensor
    kind: Kind
    weight: float = 1.0
    sigma: float | None = None


@dataclass(frozen=True)
class ConditionTokens:
    """`tokens` (B, K, D) and the boolean `mask` (B, K); a row whose mask is all False is unconditional."""

    tokens: torch.Tensor
    mask: torch.Tensor


class ConditionEncoder(ModelMixin, ConfigMixin):
    """Turns condition sets into tokens; the order of a set does not matter."""

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 384,
        max_conditions: int = 8,
        text_sigma: float = 0.5,
        bank_size: int = 0,
        bank_tau: float = 0.1,
        bank_share: float = 0.0,
        scalars: Sequence[str] = (),
        text_centring: TextCentring = "own",
        text_templates: bool = False,
        anchor_tau: float = 0.01,
        anchor_share: float = 0.0,
        anchor_likeness: float = -1.0,
        prior_dim: int = 0,
        prior_share: float = 1.0,
        guidance_scales: Sequence[float] = (),
        guidance_times: Sequence[float] = (0.0, 1.0),
    ) -> None:
        """Build the encoder.

        Args:
            embed_dim: D of the joint encoder.
            max_conditions: largest set accepted.
            text_sigma: noise level told to the network for a text, in units of the embedding's norm.
            bank_size: number of training images kept to project texts on (DeCap, Li et al. 2023).
            bank_tau: temperature of that projection's softmax over cosines.
            bank_share: share in [0, 1] of the projection in a text's embedding; 0 switches it off.
            scalars: names of the scalars in 0..1 that may be told beside a set, such as the attributes of a sound: together they are one more token.
            text_centring: how a text is brought to where images are.
            text_templates: whether the pipeline embeds a text as the mean over `models.prompts.TEMPLATES`.
            anchor_tau: temperature by which the pipeline brings a text among the encoder's class anchors (`JointEncoder.among_classes`).
            anchor_share: share in [0, 1] of that mixture in a text's embedding; 0 switches it off.
            anchor_likeness: cosine to images of the bank that a class must have to be mixed (`shown`): what no video showed has no sound; -1 for all classes.
            prior_dim: width of a learned step from a text to an image of it (`training.prior`); 0 for none.
            prior_share: share in [0, 1] of that step's end in a text's embedding.
            guidance_scales: lowest and highest weight of guidance that may be told, where `GUIDANCE` is among the scalars; none for a denoiser
                that takes guidance as a pass of its own.
            guidance_times: between which it may be told.

        Raises:
            ValueError: an unknown `text_centring`.
        """
        super().__init__()
        if text_centring not in get_args(TextCentring):
            raise ValueError(
                f"`text_centring` must be one of {get_args(TextCentring)}, got {text_centring!r}"
            )
        self.means = nn.Buffer(torch.zeros(len(KINDS), embed_dim))
        self.bank = nn.Buffer(torch.zeros(bank_size, embed_dim))  # centred image embeddings of unit norm
        self.sigma_projection = nn.Linear(2, embed_dim)
        if scalars:
            self.scalar_projection = nn.Parameter(torch.empty(len(scalars), 2 + WAVES, embed_dim))
            nn.init.normal_(self.scalar_projection, std=SCALAR_STD)
        if prior_dim:
            self.prior = nn.Sequential(
                nn.Linear(embed_dim, prior_dim), nn.GELU(), nn.Linear(prior_dim, embed_dim)
            )

    def changed(self, **settings: Any) -> ConditionEncoder:
        """Return a copy with other settings (arguments of the constructor) and the same weights; those that this one lacks are as initialised, but a
        scalar that is new here starts as nothing.
        """
        own = {name: value for name, value in self.config.items() if not name.startswith("_")}
        other = ConditionEncoder(**(own | settings))
        fresh, weights = other.state_dict(), self.state_dict()
        if "scalar_projection" in fresh:
            rows = dict(zip(self.config.scalars, weights.pop("scalar_projection", ()), strict=True))
            nothing = torch.zeros_like(fresh["scalar_projection"][0])
            fresh["scalar_projection"] = torch.stack([rows.get(s, nothing) for s in other.config.scalars])
        other.load_state_dict({name: weights.get(name, value) for name, value in fresh.items()})
        nn.Module.to(other, self.device, self.dtype)
        return other.eval().requires_grad_(False)

    def centre(self, embeddings: torch.Tensor, kind: Kind) -> torch.Tensor:
        """Return embeddings (N, D) less the mean of their kind, at unit norm; texts are led on towards images, by what is switched on: the prior, then the bank."""
        image, text = (self.means[KINDS.index(k)].float() for k in KINDS)
        if kind == "image" or self.config.text_centring == "image":
            centred = F.normalize(embeddings.float() - image, dim=-1)
        elif self.config.text_centring == "shift":
            centred = F.normalize(F.normalize(embeddings.float() + image - text, dim=-1) - image, dim=-1)
        else:
            centred = F.normalize(embeddings.float() - text, dim=-1)
        return centred if kind == "image" else self._towards_images(centred)

    def _towards_images(self, centred: torch.Tensor) -> torch.Tensor:
        """Return centred texts (N, D), moved by `prior_share` along the prior and by `bank_share` to the bank, at unit norm."""
        if self.config.prior_dim and self.config.prior_share > 0:
            led = F.normalize(centred + self.prior(centred.to(self.dtype)).float(), dim=-1)
            centred = F.normalize(torch.lerp(centred, led, self.config.prior_share), dim=-1)
        if self.config.bank_share > 0 and len(self.bank):
            bank = self.bank.float()
            with torch.autocast(bank.device.type, enabled=False):  # bf16 would blur the softmax
                projected = F.normalize((centred @ bank.T / self.config.bank_tau).softmax(-1) @ bank, dim=-1)
            centred = F.normalize(torch.lerp(centred, projected, self.config.bank_share), dim=-1)
        return centred

    def shown(self, anchors: torch.Tensor) -> torch.Tensor | None:
        """Return which of the encoder's class anchors (N, D), as encoded, training images show: boolean (N,). None where it is not asked for, or none is shown: then all count.

        A class is shown whose cosine to its `SHOWN_BY` nearest images of the bank, centred, is in the mean above `anchor_likeness`.
        """
        if self.config.anchor_likeness <= -1 or len(self.bank) < SHOWN_BY:
            return None
        cosines = self.centre(anchors.to(self.device), "image") @ self.bank.float().T
        near = cosines.topk(SHOWN_BY, dim=-1).values.mean(-1) > self.config.anchor_likeness
        return near if near.any() else None

    def takes_guidance(self, scale: float, times: tuple[float, float]) -> bool:
        """Return whether a weight of guidance may be told at these times, so that a guided step needs no pass without conditions."""
        if not self.config.guidance_scales:
            return False
        lowest, highest = self.config.guidance_scales
        first, last = self.config.guidance_times
        return bool(lowest <= scale <= highest and first <= times[0] and times[1] <= last)

    def total(self, conditions: Sequence[Condition]) -> torch.Tensor:
        """Return the sum (D,) of a set's centred embeddings by weight; zeros for an empty set."""
        total = torch.zeros(self.config.embed_dim, device=self.device)
        for condition in conditions:
            embedding = condition.embedding.to(self.device)[None]
            total = total + condition.weight * self.centre(embedding, condition.kind)[0]
        return total

    def forward(
        self,
        centred: torch.Tensor,
        weights: torch.Tensor,
        sigmas: torch.Tensor,
        mask: torch.Tensor,
        scalars: torch.Tensor | None = None,
    ) -> ConditionTokens:
        """Return tokens for centred unit embeddings (B, K, D), weights (B, K), sigmas (B, K) and a boolean mask (B, K).

        Args:
            scalars: (B, S) in 0..1, NaN where one is not told; with them there are K + 1 tokens.
        """
        scaled = centred * math.sqrt(
            centred.shape[-1]
        )  # unit variance per value, as the network's other inputs
        level = torch.stack([sigmas, sigmas.square()], dim=-1).to(self.sigma_projection.weight.dtype)
        tokens = weights[..., None] * scaled.to(level.dtype) + self.sigma_projection(level)
        if scalars is None:
            return ConditionTokens(tokens, mask)
        told = ~scalars.isnan()
        return ConditionTokens(
            torch.cat([tokens, self._scalar_token(scalars, told).to(tokens.dtype)[:, None]], dim=1),
            torch.cat([mask, told.any(-1, keepdim=True)], dim=1),
        )

    def _scalar_token(self, scalars: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Return (B, D): the sum over the scalars (B, S) that are told of a projection of each one's features."""
        x = scalars.nan_to_num(0.0).float()[..., None]
        waves = torch.arange(1, WAVES + 1, device=x.device) * math.pi
        features = torch.cat([torch.ones_like(x), x, torch.cos(waves * x)], dim=-1) * told[..., None]
        return torch.einsum("bsf,sfd->bd", features.to(self.scalar_projection.dtype), self.scalar_projection)

    def encode(
        self, sets: list[list[Condition]], scalars: list[Mapping[str, float]] | None = None
    ) -> ConditionTokens:
        """Return the tokens of B condition sets, padded to the largest; an empty set is unconditional.

        Args:
            scalars: what is told beside each set, by name, in 0..1.

        Raises:
            ValueError: more than `max_conditions`, a weight that is not positive, or a scalar that this encoder does not know.
        """
        size = max([len(conditions) for conditions in sets] + [1])
        if size > self.config.max_conditions:
            raise ValueError(f"at most {self.config.max_conditions} conditions in a set, got {size}")
        centred = torch.zeros(len(sets), size, self.config.embed_dim, device=self.device)
        weights, sigmas = torch.ones(2, len(sets), size, device=self.device)
        mask = torch.zeros(len(sets), size, dtype=torch.bool, device=self.device)
        default_sigma = {"image": 0.0, "text": self.config.text_sigma}
        for b, conditions in enumerate(sets):
            for k, condition in enumerate(conditions):
                if condition.weight <= 0:
                    raise ValueError(f"the weight of a condition must be positive, got {condition.weight}")
                centred[b, k] = self.centre(condition.embedding.to(self.device)[None], condition.kind)[0]
                weights[b, k] = condition.weight
                sigmas[b, k] = default_sigma[condition.kind] if condition.sigma is None else condition.sigma
                mask[b, k] = True
        return self(centred, weights, sigmas, mask, self._table(scalars or []))

    def _table(self, scalars: list[Mapping[str, float]]) -> torch.Tensor | None:
        """Return (B, S) with NaN for what is not told, or None where nothing is."""
        if not any(scalars):
            return None
        known = self.config.scalars
        table = torch.full((len(scalars), len(known)), math.nan, device=self.device)
        for b, told in enumerate(scalars):
            for name, value in told.items():
                if name not in known:
                    raise ValueError(f"this bundle knows no {name!r}, only {', '.join(known) or 'none'}")
                table[b, known.index(name)] = value
        return table
