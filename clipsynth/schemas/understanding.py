"""What a model understands of texts and images: familiarity, nearest sounds, several sounds.

Only a worker has the encoder. The API asks it (`clipsynth/admission/questions.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, Field

from clipsynth.schemas.payload import JobPayload
from clipsynth.schemas.prompts import StoredItem, StoredPrompt, UnderstoodSound
from clipsynth.schemas.sentences import Order

# Below it, a prompt has the warning `unfamiliar`.
UNFAMILIAR = 0.2


class Understood(BaseModel):
    """One text or image, as the model understands it."""

    familiarity: float | None = None
    understood_as: list[UnderstoodSound] = []
    is_truncated: bool = False


class PromptQuestion(BaseModel):
    """What the API asks: `split` is a text that may ask for several sounds, `images` are keys in storage."""

    id: str
    texts: list[str] = []
    images: list[str] = []
    split: str | None = None


class PromptAnswer(BaseModel):
    """The answer: `parts` of the text to split, one if it asks for one sound, stand behind the texts.

    `orders` say when each part sounds; an older worker does not say it.
    """

    texts: list[Understood] = []
    images: list[Understood] = []
    parts: list[str] = []
    orders: list[Order] = []


class RequestWarning(BaseModel):
    """Something that the client may not expect."""

    code: Literal["unfamiliar", "interpreted", "truncated", "different_precision"]
    detail: str
    pointer: str = Field(
        default="", description="JSON pointer of the field in the request; empty if it has none."
    )

    @classmethod
    def of_precision(cls, precision: str) -> RequestWarning:
        """Return the warning that a replayed recipe has this precision, and the model another one."""
        detail = (
            f"the recipe was made in {precision}, and the model has another precision; the sound may differ"
        )
        return cls(code="different_precision", detail=detail, pointer="/recipe")


class Understanding(BaseModel):
    """How the model understands the conditions of a payload, in their order."""

    understood: list[Understood] = []
    warnings: list[RequestWarning] = []

    @classmethod
    def of(
        cls, payload: JobPayload, understood: Sequence[Understood], interpreted: str | None = None
    ) -> Understanding:
        """Add the warnings; `interpreted` is the sentence that was taken as several sounds."""
        found, conditions = [], payload.conditions
        if interpreted:
            parts = ", ".join(_named(condition) for condition in conditions if condition.weight > 0)
            detail = f"taken as several sounds: {parts}"
            found.append(RequestWarning(code="interpreted", detail=detail, pointer="/prompt"))
        known = list(zip(payload.pointers, conditions, understood, strict=False))
        if payload.video:
            # Scenes come last: the record's payload has none.
            known.sort(key=lambda one: one[1].text is None)
        for pointer, condition, own in known:
            if interpreted and pointer.startswith(("/prompts/", "/timeline/")):
                pointer = "/prompt"
            what = "this image" if condition.image_key else repr((condition.text or "")[:80])
            if pointer == "/video" and isinstance(condition, StoredItem):
                what = f"the scene at {condition.start_s:g} s"
            if own.is_truncated:
                detail = f"{what} is longer than the model reads; the end has no effect"
                found.append(RequestWarning(code="truncated", detail=detail, pointer=pointer))
            if own.familiarity is not None and own.familiarity < UNFAMILIAR and condition.weight > 0:
                nearest = ", ".join(sound.name for sound in own.understood_as)
                detail = f"this model has not heard {what}; nearest: {nearest}"
                found.append(RequestWarning(code="unfamiliar", detail=detail, pointer=pointer))
        return cls(understood=[own for _, _, own in known], warnings=found)

    def renamed(self, fields: Mapping[str, str]) -> Understanding:
        """Rename the field that each warning names: `fields` by the pointer, and by "" for all others."""
        for warning in self.warnings:
            warning.pointer = fields.get(warning.pointer, fields.get("", warning.pointer))
        return self

    def mark(self, conditions: Sequence[StoredPrompt]) -> Understood:
        """Note on each condition how it is understood; return the least familiar one of positive weight."""
        wanted = list(self.understood[len(conditions) :])
        for condition, own in zip(conditions, self.understood, strict=False):
            condition.familiarity, condition.understood_as = own.familiarity, own.understood_as
            if condition.weight > 0:
                wanted.append(own)
        known = [own for own in wanted if own.familiarity is not None]
        return min(known, key=lambda one: one.familiarity or 0.0, default=Understood())


def _named(condition: StoredPrompt) -> str:
    """Return the text of a part of a sentence, and when it sounds in a timeline."""
    times = f" ({condition.start_s:g} to {condition.end_s:g} s)" if isinstance(condition, StoredItem) else ""
    return f"{condition.text!r}{times}"
