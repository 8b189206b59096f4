"""From embeddings of texts and images to condition tokens for the denoiser.

Embeddings of texts and images lie in separate cones (Zhang et al. 2024, "Connect, Collapse, Corrupt"). Each
kind is centred with its own mean. Training adds noise of level sigma and gives sigma to the network, so a
request can present a text as an image embedding that is known only roughly.
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
# own: subtract the mean of texts. shift: add the difference of the means, then treat as an image.
# image: treat as an image.
TextCentring = Literal["own", "shift", "image"]
# The scalar of a denoiser with distilled guidance: the guidance weight, as `guidance_as_scalar` maps it.
GUIDANCE = "guidance"
MAX_GUIDANCE = 20.0  # the weight that maps to 1
Weight = TypeVar("Weight", float, torch.Tensor)
SCALAR_STD = 0.5  # of the initial weights of `scalar_projection`
SHOWN_BY = 3  # images of the bank that must be similar to a class
WAVES = 4  # cosine features of a scalar, beside its value


def guidance_as_scalar(scale: Weight) -> Weight:
    """Map guidance weights in 1..`MAX_GUIDANCE` to 0..1."""
    return (scale - 1) / (MAX_GUIDANCE - 1)


@dataclass(frozen=True)
class Condition:
    """One element of a request's condition set.

    Attributes:
        embedding: (D,) of unit norm.
        weight: > 0, scales its token; 1 as trained.
        sigma: >= 0, the uncertainty of the embedding; None for the bundle's value of its kind.
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
            max_conditions: largest accepted set.
            text_sigma: noise level given to the network for a text, in units of the embedding's norm.
            bank_size: number of training images kept to project texts on (DeCap, Li et al. 2023).
            bank_tau: temperature of the projection's softmax over cosines.
            bank_share: share in [0, 1] of the projection in a text's embedding; 0 switches it off.
            scalars: names of the conditioning scalars in 0..1, such as attributes. Together they are one more
                token.
            text_centring: how a text is moved to the region of images.
            text_templates: whether a text is embedded as the mean over
                `models.conditioning.prompts.TEMPLATES`.
            anchor_tau: temperature of the mixture of class anchors for a text (`JointEncoder.among_classes`).
            anchor_share: share in [0, 1] of that mixture in a text's embedding; 0 switches it off.
            anchor_likeness: cosine to images of the bank that a class needs to be in the mixture (`shown`),
                because a class that no video showed has no sound; -1 for all classes.
            prior_dim: width of a learned step from a text to an image (`training.prior`); 0 for none.
            prior_share: share in [0, 1] of that step in a text's embedding.
            guidance_scales: lowest and highest weight of distilled guidance; empty without it.
            guidance_times: times between which distilled guidance is valid.

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
        """Return a copy with other constructor arguments and the same weights.

        Weights that this encoder lacks are as initialised; the projection of a new scalar is zero.
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
        """Return embeddings (N, D) minus the mean of their kind, at unit norm.

        Texts are also moved towards images: by the prior, then by the bank, where these are on.
        """
        image, text = (self.means[KINDS.index(k)].float() for k in KINDS)
        if kind == "image" or self.config.text_centring == "image":
            centred = F.normalize(embeddings.float() - image, dim=-1)
        elif self.config.text_centring == "shift":
            centred = F.normalize(F.normalize(embeddings.float() + image - text, dim=-1) - image, dim=-1)
        else:
            centred = F.normalize(embeddings.float() - text, dim=-1)
        return centred if kind == "image" else self._towards_images(centred)

    def _towards_images(self, centred: torch.Tensor) -> torch.Tensor:
        """Return centred texts (N, D), moved by `prior_share` and by `bank_share`, at unit norm."""
        if self.config.prior_dim and self.config.prior_share > 0:
            moved = F.normalize(centred + self.prior(centred.to(self.dtype)).float(), dim=-1)
            centred = F.normalize(torch.lerp(centred, moved, self.config.prior_share), dim=-1)
        if self.config.bank_share > 0 and len(self.bank):
            bank = self.bank.float()
            with torch.autocast(bank.device.type, enabled=False):  # bf16 would blur the softmax
                projected = F.normalize((centred @ bank.T / self.config.bank_tau).softmax(-1) @ bank, dim=-1)
            centred = F.normalize(torch.lerp(centred, projected, self.config.bank_share), dim=-1)
        return centred

    def shown(self, anchors: torch.Tensor) -> torch.Tensor | None:
        """Return which class anchors (N, D) the training images show: boolean (N,), or None for all.

        A class is shown if the mean of its cosines to the `SHOWN_BY` nearest images of the bank, centred, is
        above `anchor_likeness`. None where the setting is off or no class is shown.
        """
        if self.config.anchor_likeness <= -1 or len(self.bank) < SHOWN_BY:
            return None
        cosines = self.centre(anchors.to(self.device), "image") @ self.bank.float().T
        near = cosines.topk(SHOWN_BY, dim=-1).values.mean(-1) > self.config.anchor_likeness
        return near if near.any() else None

    def takes_guidance(self, scale: float, times: tuple[float, float]) -> bool:
        """Return whether distilled guidance covers this weight and these times."""
        if not self.config.guidance_scales:
            return False
        lowest, highest = self.config.guidance_scales
        first, last = self.config.guidance_times
        return bool(lowest <= scale <= highest and first <= times[0] and times[1] <= last)

    def total(self, conditions: Sequence[Condition]) -> torch.Tensor:
        """Return the weighted sum (D,) of a set's centred embeddings; zeros for an empty set."""
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
        """Return the tokens of condition sets.

        Centred unit embeddings (B, K, D), weights and sigmas (B, K) and a mask (B, K) give (B, K, D).

        Args:
            scalars: (B, S) in 0..1, NaN where a scalar is masked. With scalars there are K + 1 tokens.
        """

        # Unit variance per value, as the network's other inputs.
        scaled = centred * math.sqrt(centred.shape[-1])
        level = torch.stack([sigmas, sigmas.square()], dim=-1).to(self.sigma_projection.weight.dtype)
        tokens = weights[..., None] * scaled.to(level.dtype) + self.sigma_projection(level)
        if scalars is None:
            return ConditionTokens(tokens, mask)

        given = ~scalars.isnan()
        return ConditionTokens(
            torch.cat([tokens, self._scalar_token(scalars, given).to(tokens.dtype)[:, None]], dim=1),
            torch.cat([mask, given.any(-1, keepdim=True)], dim=1),
        )

    def _scalar_token(self, scalars: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Return (B, D): the sum over the given scalars (B, S) of the projection of each one's features."""
        x = scalars.nan_to_num(0.0).float()[..., None]
        waves = torch.arange(1, WAVES + 1, device=x.device) * math.pi
        features = torch.cat([torch.ones_like(x), x, torch.cos(waves * x)], dim=-1) * given[..., None]
        return torch.einsum("bsf,sfd->bd", features.to(self.scalar_projection.dtype), self.scalar_projection)

    def encode(
        self, sets: list[list[Condition]], scalars: list[Mapping[str, float]] | None = None
    ) -> ConditionTokens:
        """Return the tokens of B condition sets, padded to the largest; an empty set is unconditional.

        Args:
            scalars: conditioning scalars of each set by name, in 0..1.

        Raises:
            ValueError: more than `max_conditions`, a weight that is not positive, or an unknown scalar.
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
        """Return (B, S) with NaN for scalars that are not given; None where none is."""
        if not any(scalars):
            return None
        known = self.config.scalars
        table = torch.full((len(scalars), len(known)), math.nan, device=self.device)
        for b, values in enumerate(scalars):
            for name, value in values.items():
                if name not in known:
                    raise ValueError(f"this bundle knows no {name!r}, only {', '.join(known) or 'none'}")
                table[b, known.index(name)] = value
        return table
