"""What a request asks for: a set of texts and images with weights. The order of a set means nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image

TEMPLATES = ("{}", "a photo of {}", "the sound of {}", "a video of {}")  # around what is asked for
# set: the network sees all that is wanted at once. compose: each condition guides the one sound (Liu et al. 2022, eq. 11).
# mix: each makes a sound of its own, and those are mixed.
Composition = Literal["set", "compose", "mix"]
COMPOSITIONS: tuple[Composition, ...] = get_args(Composition)


@dataclass(frozen=True)
class Prompt:
    """A text or an image of a set. `weight`: 1 is as trained, more is stronger; below 0 guidance points away from it (`negative_prompt` is -1).

    Raises:
        ValueError: a blank text, or a weight that is 0 or not finite.
    """

    content: str | Image.Image
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.content, str) and not self.content.strip():
            raise ValueError("the text of a prompt must not be blank")
        if self.weight == 0 or not math.isfinite(self.weight):
            raise ValueError(f"the weight of a prompt must be finite and not 0, got {self.weight}")


def as_set(
    prompt: str | Sequence[Prompt] | None, image: Image.Image | None, negative_prompt: str | None
) -> list[Prompt]:
    """Return the arguments of a call as one set: text and image have weight 1, the negative prompt -1.

    Raises:
        ValueError: a blank text.
    """
    prompts = [Prompt(prompt)] if isinstance(prompt, str) else list(prompt or [])
    prompts += [] if image is None else [Prompt(image)]
    return prompts + ([] if negative_prompt is None else [Prompt(negative_prompt, -1.0)])


def templated(text: str) -> list[str]:
    """Return `text` in each of `TEMPLATES`, after taking off the one that it is in already."""
    heads = [template.removesuffix("{}") for template in TEMPLATES[1:]]
    bare = next(
        (text[len(h) :] for h in heads if text.lower().startswith(h) and text[len(h) :].strip()), text
    )
    return [template.format(bare) for template in TEMPLATES]
