"""The branches of a row: its conditions, and the ones that guidance points away from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from models.audio.attributes import Scales
from models.conditioning import attribute_targets
from models.conditioning.prompts import Composition, Prompt
from models.networks.condition_encoder import (
    GUIDANCE,
    Condition,
    ConditionEncoder,
    ConditionTokens,
    Kind,
    guidance_as_scalar,
)
from models.retrieval.clip_index import Index


@dataclass(frozen=True)
class Branches:
    """Fields of a row or a window of the sampler (`models.sampler.SamplerRow`)."""

    conds: Sequence[ConditionTokens]
    uncond: ConditionTokens
    weights: tuple[float, ...]
    guided_conds: Sequence[ConditionTokens]


@dataclass(frozen=True)
class Conditioner:
    """Makes the branches of all windows of one request.

    Attributes: embeddings: of the prompts, each with its kind. attributes: of the whole request. reach: as
        of `attribute_targets.resolve`.
    """

    encoder: ConditionEncoder
    index: Index | None
    scales: Scales
    reach: float
    prompts: Sequence[Prompt]
    embeddings: Sequence[tuple[torch.Tensor, Kind]]
    composition: Composition
    attributes: Mapping[str, float]
    guidance_scale: float
    guidance_interval: tuple[float, float]

    def branches(self, items: tuple[int, ...] | None = None) -> Branches:
        """Return the branches of the prompts with these numbers and all of negative weight; None for all.

        Only the conditional branches receive the attributes, so guidance amplifies them. A bundle with
        distilled guidance (`ConditionEncoder.takes_guidance`) receives the guidance weight as a scalar and
        skips the unconditional pass, unless there is a negative prompt or a composition of several.
        """
        wanted, unwanted = (self._conditions(items, sign) for sign in (1, -1))
        asked = self._asked(items)
        scalars = attribute_targets.resolve(asked, wanted, self.encoder, self.scales, self.index, self.reach)
        conds, weights = self._compose(wanted, scalars)
        guided: list[ConditionTokens] = []
        alone = (self.composition != "compose" or weights == (1.0,)) and not unwanted
        if alone and self.encoder.takes_guidance(self.guidance_scale, self.guidance_interval):
            guided, _ = self._compose(wanted, {**scalars, GUIDANCE: guidance_as_scalar(self.guidance_scale)})
        return Branches(conds, self.encoder.encode([unwanted]), weights, guided)

    def loudness(self, items: tuple[int, ...] | None = None) -> float | None:
        """Return the requested loudness of these prompts, in dB of full scale; None keeps the level."""
        quantile = self._asked(items).get("loudness")
        return None if quantile is None else self.scales.value("loudness", quantile)

    def _conditions(self, items: tuple[int, ...] | None, sign: int) -> list[Condition]:
        chosen = [n for n in range(len(self.prompts)) if items is None or sign < 0 or n in items]
        return in_order([self.prompts[n] for n in chosen], [self.embeddings[n] for n in chosen], sign)

    def _asked(self, items: tuple[int, ...] | None) -> dict[str, float]:
        """Return the attributes of the request, and those of its items: the mean by weight of each name."""
        named: dict[str, list[tuple[float, float]]] = {}
        for n, prompt in enumerate(self.prompts):
            if prompt.weight > 0 and (items is None or n in items):
                for name, value in prompt.attributes.items():
                    named.setdefault(name, []).append((prompt.weight, value))
        means = {
            name: sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs)
            for name, pairs in named.items()
        }
        return {**self.attributes, **means}

    def _compose(
        self, wanted: Sequence[Condition], scalars: Mapping[str, float]
    ) -> tuple[list[ConditionTokens], tuple[float, ...]]:
        """Return the condition tokens of each row of the network, and their weights."""
        if self.composition == "set":
            return [self.encoder.encode([list(wanted)], [scalars])], (1.0,)
        conds = [self.encoder.encode([[replace(condition, weight=1.0)]], [scalars]) for condition in wanted]
        if self.composition == "mix" and len(wanted) == 1:
            return conds, (1.0,)
        return conds, tuple(condition.weight for condition in wanted)


def in_order(
    prompts: Sequence[Prompt], embeddings: Sequence[tuple[torch.Tensor, Kind]], sign: int
) -> list[Condition]:
    """Return the conditions of the prompts whose weight has this sign, in a fixed order.

    The order does not depend on the request's, so that sums are byte-equal.
    """
    conditions = [
        Condition(embedding, kind, abs(prompt.weight))
        for prompt, (embedding, kind) in zip(prompts, embeddings, strict=True)
        if sign * prompt.weight > 0
    ]
    return sorted(conditions, key=lambda c: (c.kind != "text", c.weight, c.embedding.tolist()))
