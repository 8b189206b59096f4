"""Attributes of a sound in a request: how they are written, and what is made of them and of the words of the prompt."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from clipsynth.errors import AttributeUnavailable
from clipsynth.schemas import prompt_parser as words

Quantile = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Attributes(BaseModel):
    """What the sound is to be like, each a place in 0..1 among training sounds near what is asked for: 0.5 is usual for its kind, 0.9 more than most. What is left out is left open."""

    model_config = ConfigDict(extra="forbid")

    loudness: Quantile | None = Field(
        default=None, description="from quiet to loud, among all training sounds; a gain"
    )
    brightness: Quantile | None = Field(default=None, description="from dull to bright")
    pitch: Quantile | None = Field(default=None, description="from low to high")
    noisiness: Quantile | None = Field(default=None, description="from tonal to noisy")
    density: Quantile | None = Field(default=None, description="from few events to many")

    def given(self) -> dict[str, float]:
        """Return those that are not left open, by name."""
        values: dict[str, float] = self.model_dump(exclude_none=True)
        return values


NAMES = tuple(Attributes.model_fields)


def settle(
    prompt: str | None, asked: Mapping[str, float] | None, taken: Collection[str], *, model: str
) -> tuple[str | None, dict[str, float]]:
    """Return the text to embed, and the attributes of the sound: those asked for, and those that the prompt says in words and that were left open.

    Args:
        asked: None where the request says nothing of attributes; where it says there are none ({}), the prompt is taken as it is written.
        taken: attributes that the model takes.

    Raises:
        AttributeUnavailable: one is asked for that the model does not take.
    """
    for name in asked or {}:
        if name not in taken:
            offered = f"it takes {', '.join(taken)}" if taken else "it takes no attributes"
            raise AttributeUnavailable(f"/attributes/{name}: not offered by model {model}; {offered}")
    if prompt is None or asked == {}:
        return prompt, dict(asked or {})
    rest, said = words.read(prompt, taken)
    settled = {**said, **(asked or {})}
    return rest, {name: settled[name] for name in NAMES if name in settled}
