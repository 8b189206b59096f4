"""Sentences of several sounds: where they may be split, and when each sound is heard.

"a dog and rain" are heard together; "rain, then a dog" one after another; in "rain, later a dog" the rain
continues.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from clipsynth.schemas.prompt_parser import bind_words
from clipsynth.schemas.prompts import MIN_DURATION_S, OF_PARTS, Composition, StoredItem

# When a sound begins: together with the one before, then, when that one ends, or later, while it continues.
Order = Literal["together", "then", "later"]
# A longer text is no sentence of a few sounds.
MAX_SENTENCE = 800


class Piece(NamedTuple):
    """A piece of a sentence, and the separator before it.

    `is_weak`: the separator often joins a thing to its properties ("a dog with a bone").
    """

    text: str
    joint: str = ""
    is_weak: bool = False
    order: Order = "together"


class Part(NamedTuple):
    """One sound of a sentence, and when it begins after the part before."""

    text: str
    order: Order = "together"


# Words between two sounds, in the languages of the packaged encoders.
_LATER = (
    "and later on|and later|later on|later|und später|später|et plus tard|plus tard|y más tarde|más tarde|"
    "e più tardi|più tardi|e mais tarde|mais tarde|en later|i później|a później|później|ve daha sonra|"
    "daha sonra|и позже|а позже|позже"
)
_THEN = (
    "and then|then|and after that|after that|and afterwards|afterwards|followed by|und dann|dann|und danach|"
    "danach|gefolgt von|et puis|puis|et ensuite|ensuite|suivie? (?:de|par)|y luego|luego|y después|después|"
    "seguid[oa] (?:de|por)|e poi|poi|seguit[oa] da|e depois|depois|en dan|en daarna|daarna|gevolgd door|"
    "i potem|a potem|potem|a następnie|następnie|ve sonra|sonra|ardından|и потом|а потом|потом|"
    "а затем|затем"
)
_STRONG = (
    "and|along with|together with|as well as|while|plus|on top of|"
    "over the sound of|und|sowie|während|et|pendant que|tandis que|ainsi que|y|e|mientras|ed|mentre|"
    "enquanto|en|terwijl|i|oraz|podczas gdy|ve|и|пока|а также"
)
_WEAK = "with|over|mit|über|avec|sur|con|sobre|su|com|met|z|ile|с|со"
_BACKGROUND = (
    r"(?:playing |singing |softly )?(?:in the (?:back|fore)ground|in the distance|behind (?:it|them)|"
    "im Hintergrund|en fond|à l'arrière-plan|de fondo|in sottofondo|ao fundo|op de achtergrond|w tle|на фоне|"
    "arka planda)"
)
_SPACELESS_LATER = "后来|後來|後で|あとで"
_SPACELESS_THEN = "然后|然後|接着|接著|之后|之後|それから|その後に?|次に|จากนั้น|แล้วก็"
_SPACELESS = f"{_SPACELESS_LATER}|{_SPACELESS_THEN}|和|与|與|以及|同时|、|と一緒に|と|や|และ|กับ|ขณะที่"
_SUFFIXED_LATER = r"\s+(?:그리고 )?나중에\s+|\s+وبعد قليل\s+"
_SUFFIXED_THEN = r"\s+(?:그리고 나서|그 ?다음에?)\s+|\s+(?:ثم|وبعد ذلك|بعد ذلك)\s+"
_SUFFIXED = (
    rf"{_SUFFIXED_LATER}|{_SUFFIXED_THEN}|(?<=[가-힣])(?:과|와|하고|랑)\s+|\s+그리고\s+|\s+و(?=\w)|\s+مع\s+"
)
_BETWEEN = f"{_LATER}|{_THEN}|{_STRONG}"
_WORDS = re.compile(
    r"\s*(?:(?<!\d),(?!\d)|[;+，；،]|(?<=\s)&(?=\s))\s*"
    rf"(?:(?:{_BETWEEN})(?!\w)\s*|(?P<weak_after>{_WEAK})(?!\w)\s*)?"
    rf"|(?<![.。…])[.。…]++\s*(?:(?:{_LATER}|{_THEN})(?!\w)\s*|{_SPACELESS_LATER}|{_SPACELESS_THEN})"
    rf"|\s+(?:{_BETWEEN})\s+|\s+(?P<weak>{_WEAK})\s+|{_SUFFIXED}|\s*(?:{_SPACELESS})\s*",
    re.IGNORECASE,
)
_TAIL = re.compile(rf"(?:^|[\s,])\s?{_BACKGROUND}$", re.IGNORECASE)
# "a dog barks later", and "first a piano".
_TAILS: tuple[tuple[Order, re.Pattern[str]], ...] = (
    ("later", re.compile(rf"\s(?:{_LATER})$", re.IGNORECASE)),
    (
        "then",
        re.compile(r"\s(?:after that|afterwards|danach|ensuite|después|depois|daarna|potem)$", re.IGNORECASE),
    ),
)
_FIRST = re.compile(
    r"^(?:(?:first|firstly|at first|zuerst|erst|d'abord|primero|prima|primeiro|eerst|najpierw|önce|сначала|"
    r"먼저|أولا)[\s,:]+|(?:首先|まず)[\s,，、]*)",
    re.IGNORECASE,
)
_ORDERS: tuple[tuple[Order, re.Pattern[str]], ...] = (
    ("later", re.compile(rf"^(?:{_LATER}|{_SPACELESS_LATER})$|{_SUFFIXED_LATER}", re.IGNORECASE)),
    ("then", re.compile(rf"^(?:{_THEN}|{_SPACELESS_THEN})$|{_SUFFIXED_THEN}", re.IGNORECASE)),
)


def _order(sign: str) -> Order:
    """Return what a separator says of the time."""
    bare = sign.strip(" ,;+，；،.。…")
    for order, words in _ORDERS:
        if words.search(bare) or words.search(f" {bare} "):
            return order
    return "together"


def pieces(text: str) -> list[Piece]:
    """Split a sentence at every word or sign that may stand between two sounds."""
    # Single spaces keep the time linear.
    text = " ".join(text.split())
    if len(text) > MAX_SENTENCE:
        return [Piece(text)]
    found: list[Piece] = []
    start, joint, is_weak, order = 0, "", False, _order("")
    ends = [
        (m.start(), m.end(), m[0].strip(), bool(m["weak"] or m["weak_after"])) for m in _WORDS.finditer(text)
    ]
    for begin, end, sign, weak in [*ends, (len(text), len(text), "", False)]:
        piece = text[start:begin].strip()
        bare = _TAIL.sub("", piece).rstrip(" ,")
        # A sound in the background is no property of the first one.
        if bare:
            found.append(Piece(bare, joint, is_weak and bare == piece, order))
            joint, is_weak, order = sign, weak, _order(sign)
        elif (next_order := _order(sign)) != "together":
            order = next_order
        start = end
    return found


def may_be_several(text: str) -> bool:
    """Return whether a sentence has a separator, so that a worker is asked."""
    return len(pieces(text)) > 1


def in_order(parts: Sequence[Part]) -> list[Part]:
    """Return the sounds of a sentence without the words that only say when they are heard."""
    found = list(parts)
    for n, part in enumerate(found[1:], 1):
        for order, tail in _TAILS:
            if part.order == "together" and tail.search(part.text):
                found[n] = Part(tail.sub("", part.text), order)
                break
    if any(part.order != "together" for part in found):
        found[0] = Part(_FIRST.sub("", found[0].text) or found[0].text)
    return found


def fields_of_parts(
    parts: Sequence[Part],
    requested: Mapping[str, float] | None,
    supported: Collection[str],
    *,
    composition: Composition | None,
    duration_s: float | None,
    default_s: float,
    longest_s: float,
) -> dict[str, Any]:
    """Return the fields of a job payload for the sounds of a sentence.

    Sounds that follow each other become a timeline with equally long stages, others a mix.

    Args:
        requested, supported: as of `bind_words`.
        composition: as requested; with one, all sound together.
        duration_s: seconds of all; None for `default_s` a stage.
        longest_s: most seconds without a `duration_s`; 0 if the model makes no timelines.
    """
    prompts = bind_words([part.text for part in parts], requested, supported)
    begins = [sum(part.order != "together" for part in parts[: n + 1]) for n in range(len(parts))]
    stages = begins[-1] + 1
    total_s = duration_s or min(stages * default_s, longest_s)
    if composition or stages == 1 or not longest_s or total_s < stages * MIN_DURATION_S:
        return {"prompts": prompts, "composition": composition or OF_PARTS}

    def end(n: int) -> int:
        """Return the stage at whose beginning part n ends."""
        ends = (begins[m] for m, part in enumerate(parts) if begins[m] > begins[n] and part.order == "then")
        return min(ends, default=stages)

    items = [
        StoredItem(
            text=prompt.text,
            attributes=prompt.attributes,
            start_s=round(total_s * begins[n] / stages, 3),
            end_s=round(total_s * end(n) / stages, 3),
        )
        for n, prompt in enumerate(prompts)
    ]
    return {"timeline": items, "duration_s": total_s}
