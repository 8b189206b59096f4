"""The prompts of a request: a set of texts and images with weights. The order has no meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from PIL import Image

TEMPLATES = ("{}", "a photo of {}", "the sound of {}", "a video of {}")
# set: the network gets all prompts at once. compose: each prompt guides the one sound (Liu et al. 2022, eq.
# 11). mix: each prompt makes a sound, and the sounds are mixed.
Composition = Literal["set", "compose", "mix"]
COMPOSITIONS: tuple[Composition, ...] = get_args(Composition)


@dataclass(frozen=True)
class Prompt:
    """A text or an image of a set.

    Attributes:
        weight: 1 as trained, more is stronger. Guidance points away from a negative weight (`negative_prompt`
            is -1).
        attributes: of an item of a timeline, as the pipeline takes them.

    Raises:
        ValueError: a blank text, or a weight that is 0 or not finite.
    """

    content: str | Image.Image
    weight: float = 1.0
    attributes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.content, str) and not self.content.strip():
            raise ValueError("the text of a prompt must not be blank")
        if self.weight == 0 or not math.isfinite(self.weight):
            raise ValueError(f"the weight of a prompt must be finite and not 0, got {self.weight}")


def as_set(
    prompt: str | Sequence[Prompt] | None, image: Image.Image | None, negative_prompt: str | None
) -> list[Prompt]:
    """Return the arguments of a call as one set.

    Text and image have weight 1, the negative prompt -1.

    Raises:
        ValueError: a blank text.
    """
    prompts = [Prompt(prompt)] if isinstance(prompt, str) else list(prompt or [])
    prompts += [] if image is None else [Prompt(image)]
    return prompts + ([] if negative_prompt is None else [Prompt(negative_prompt, -1.0)])


def check_set(prompts: Sequence[Prompt], composition: Composition, guidance_scale: float, most: int) -> None:
    """Raise ValueError unless 1 to `most` weights are positive, and none is negative without guidance."""
    if composition not in COMPOSITIONS:
        raise ValueError(f"`composition` must be one of {', '.join(COMPOSITIONS)}, got {composition!r}")
    positive = sum(prompt.weight > 0 for prompt in prompts)
    if positive > most:
        raise ValueError(f"at most {most} prompts of positive weight, got {positive}")
    if not positive:
        raise ValueError("a `prompt` of positive weight or an `image` is needed")
    if guidance_scale <= 1 and any(prompt.weight < 0 for prompt in prompts):
        raise ValueError(
            f"a negative prompt or weight needs a `guidance_scale` above 1, got {guidance_scale}"
        )


def templated(text: str) -> list[str]:
    """Return `text` in each of `TEMPLATES`; a template that it already has is removed first."""
    heads = [template.removesuffix("{}") for template in TEMPLATES[1:]]
    bare = next(
        (text[len(h) :] for h in heads if text.lower().startswith(h) and text[len(h) :].strip()), text
    )
    return [template.format(bare) for template in TEMPLATES]
