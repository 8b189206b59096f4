"""What a model understands of texts and images: familiarity, nearest sounds, several sounds.

Only a worker has the encoder. The API asks it (`clipsynth/admission/questions.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from clipsynth.schemas.payload import JobPayload
from clipsynth.schemas.prompts import StoredItem, StoredPrompt, UnderstoodSound

# Below it, a prompt has the warning `unfamiliar`.
UNFAMILIAR = 0.2
# A longer text is no sentence of a few sounds.
MAX_SENTENCE = 800


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
    """The answer: `parts` of the text to split, one if it asks for one sound, stand behind the texts."""

    texts: list[Understood] = []
    images: list[Understood] = []
    parts: list[str] = []


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
            parts = ", ".join(repr(condition.text) for condition in conditions if condition.weight > 0)
            detail = f"taken as several sounds: {parts}"
            found.append(RequestWarning(code="interpreted", detail=detail, pointer="/prompt"))
        known = list(zip(payload.pointers, conditions, understood, strict=False))
        if payload.video:
            # Scenes come last: the record's payload has none.
            known.sort(key=lambda one: one[1].text is None)
        for pointer, condition, own in known:
            if interpreted and pointer.startswith("/prompts/"):
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


# ------------------------------------------------------------------------------------------------- separators


class Piece(NamedTuple):
    """A piece of a sentence, and the separator before it.

    `is_weak`: the separator often joins a thing to its properties ("a dog with a bone").
    """

    text: str
    joint: str = ""
    is_weak: bool = False


# Words between two sounds, in the languages of the packaged encoders.
_STRONG = (
    "and then|and|then|along with|together with|as well as|while|plus|followed by|on top of|"
    "over the sound of|und|sowie|während|et|pendant que|tandis que|ainsi que|y|e|mientras|ed|mentre|"
    "enquanto|en|terwijl|i|oraz|podczas gdy|ve|и|пока|а также"
)
_WEAK = "with|over|mit|über|avec|sur|con|sobre|su|com|met|z|ile|с|со"
_BACKGROUND = (
    r"(?:playing |singing |softly )?(?:in the (?:back|fore)ground|in the distance|behind (?:it|them)|"
    "im Hintergrund|en fond|à l'arrière-plan|de fondo|in sottofondo|ao fundo|op de achtergrond|w tle|на фоне|"
    "arka planda)"
)
_SPACELESS = "和|与|與|以及|同时|、|と一緒に|と|や|และ|กับ|ขณะที่"
_SUFFIXED = r"(?<=[가-힣])(?:과|와|하고|랑)\s+|\s+그리고\s+|\s+و(?=\w)|\s+مع\s+"
_WORDS = re.compile(
    r"\s*(?:(?<!\d),(?!\d)|[;+，；]|(?<=\s)&(?=\s))\s*"
    rf"(?:(?:{_STRONG})(?!\w)\s*|(?P<weak_after>{_WEAK})(?!\w)\s*)?"
    rf"|\s+(?:{_STRONG})\s+|\s+(?P<weak>{_WEAK})\s+|\s*(?:{_SPACELESS})\s*|{_SUFFIXED}",
    re.IGNORECASE,
)
_TAIL = re.compile(rf"(?:^|[\s,])\s?{_BACKGROUND}$", re.IGNORECASE)


def pieces(text: str) -> list[Piece]:
    """Split a sentence at every word or sign that may stand between two sounds."""
    # Single spaces keep the time linear.
    text = " ".join(text.split())
    if len(text) > MAX_SENTENCE:
        return [Piece(text)]
    found, start, joint, is_weak = [], 0, "", False
    ends = [
        (m.start(), m.end(), m[0].strip(), bool(m["weak"] or m["weak_after"])) for m in _WORDS.finditer(text)
    ]
    for begin, end, sign, weak in [*ends, (len(text), len(text), "", False)]:
        piece = text[start:begin].strip()
        bare = _TAIL.sub("", piece).rstrip(" ,")
        # A sound in the background is no property of the first one.
        if bare:
            found.append(Piece(bare, joint, is_weak and bare == piece))
            joint, is_weak = sign, weak
        start = end
    return found


def may_be_several(text: str) -> bool:
    """Return whether a sentence has a separator, so that a worker is asked."""
    return len(pieces(text)) > 1
