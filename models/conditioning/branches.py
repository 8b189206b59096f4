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

    Attributes:
        embeddings: of the prompts, each with its kind.
        attributes: of the whole request.
        reach: as of `attribute_targets.resolve`.
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
        (wanted, own), (unwanted, _) = (self._conditions(items, sign) for sign in (1, -1))
        if self.composition == "set" or not any(own):
            scalars = [self._scalars(self._asked(items), wanted)] * max(1, len(wanted))
        else:
            scalars = [
                self._scalars({**self.attributes, **asked}, [condition])
                for condition, asked in zip(wanted, own, strict=True)
            ]
        conds, weights = self._compose(wanted, scalars)
        if self.composition == "mix" and len(wanted) > 1:
            weights = tuple(w * self._level(asked) for w, asked in zip(weights, own, strict=True))
        guided: list[ConditionTokens] = []
        alone = (self.composition != "compose" or weights == (1.0,)) and not unwanted
        if alone and self.encoder.takes_guidance(self.guidance_scale, self.guidance_interval):
            guidance = {GUIDANCE: guidance_as_scalar(self.guidance_scale)}
            guided, _ = self._compose(wanted, [{**own_scalars, **guidance} for own_scalars in scalars])
        return Branches(conds, self.encoder.encode([unwanted]), weights, guided)

    def loudness(self, items: tuple[int, ...] | None = None) -> float | None:
        """Return the requested loudness of these prompts, in dB of full scale; None keeps the level."""
        quantile = self._asked(items).get("loudness")
        return None if quantile is None else self.scales.value("loudness", quantile)

    def _scalars(self, asked: Mapping[str, float], near: Sequence[Condition]) -> dict[str, float]:
        return attribute_targets.resolve(asked, near, self.encoder, self.scales, self.index, self.reach)

    def _level(self, asked: Mapping[str, float]) -> float:
        """Return the factor of a component in a mix for its own loudness, against the usual one."""
        if "loudness" not in asked:
            return 1.0
        usual_db = self.scales.value("loudness", 0.5)
        return float(10 ** ((self.scales.value("loudness", asked["loudness"]) - usual_db) / 20))

    def _conditions(
        self, items: tuple[int, ...] | None, sign: int
    ) -> tuple[list[Condition], list[Mapping[str, float]]]:
        """Return the conditions of this sign, and the attributes of each one's prompt."""
        chosen = [n for n in range(len(self.prompts)) if items is None or sign < 0 or n in items]
        found = in_order([self.prompts[n] for n in chosen], [self.embeddings[n] for n in chosen], sign)
        return [condition for condition, _ in found], [own for _, own in found]

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
        self, wanted: Sequence[Condition], scalars: Sequence[Mapping[str, float]]
    ) -> tuple[list[ConditionTokens], tuple[float, ...]]:
        """Return the condition tokens of each row of the network, and their weights."""
        if self.composition == "set":
            return [self.encoder.encode([list(wanted)], [scalars[0]])], (1.0,)
        conds = [
            self.encoder.encode([[replace(condition, weight=1.0)]], [own])
            for condition, own in zip(wanted, scalars, strict=False)
        ]
        if self.composition == "mix" and len(wanted) == 1:
            return conds, (1.0,)
        return conds, tuple(condition.weight for condition in wanted)


def in_order(
    prompts: Sequence[Prompt], embeddings: Sequence[tuple[torch.Tensor, Kind]], sign: int
) -> list[tuple[Condition, Mapping[str, float]]]:
    """Return the conditions of this sign and the attributes of their prompts, in a fixed order.

    The order does not depend on the request's, so that sums are byte-equal.
    """
    conditions = [
        (Condition(embedding, kind, abs(prompt.weight)), prompt.attributes)
        for prompt, (embedding, kind) in zip(prompts, embeddings, strict=True)
        if sign * prompt.weight > 0
    ]
    return sorted(conditions, key=lambda c: (c[0].kind != "text", c[0].weight, c[0].embedding.tolist()))
