"""Prepare texts for an encoder: emoji by their names, nothing invisible, known letters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Protocol

from clipsynth.errors import UnreadablePrompt

# By ISO 15924's code: how Unicode's names of the letters begin.
LETTERS = {
    "Latn": ("LATIN ",),
    "Cyrl": ("CYRILLIC ",),
    "Grek": ("GREEK ",),
    "Arab": ("ARABIC ",),
    "Hebr": ("HEBREW ",),
    "Deva": ("DEVANAGARI ",),
    "Thai": ("THAI ",),
    "Hani": ("CJK ",),
    "Jpan": ("HIRAGANA ", "KATAKANA ", "CJK "),
    "Kore": ("HANGUL ", "CJK "),
}
# Fillers and blanks that Unicode does not count as formats.
_BLANKS = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0") | {chr(n) for n in range(0xFE00, 0xFE10)}
_LATIN = re.compile(r"[A-Za-z]")


class Reader(Protocol):
    """A model by its name, and the scripts that it reads."""

    @property
    def name(self) -> str: ...

    @property
    def scripts(self) -> Sequence[str]: ...


def readable(text: str, model: Reader, pointer: str) -> str:
    """Return the text with emoji as their CLDR names and without invisible characters.

    Letters in another form, such as full width, are changed if the text has no others.

    Raises:
        UnreadablePrompt: it has no letter of a script that the model reads.
    """
    if text.isascii() and text.isprintable() and _LATIN.search(text) and "Latn" in model.scripts:
        return text
    cleaned = _without_invisible(text if text.isascii() else _with_named_emoji(text))
    for form in (cleaned, unicodedata.normalize("NFKC", cleaned)):
        if _has_letter(form, model.scripts):
            return form
    scripts = ", ".join(model.scripts) or "any script"
    raise UnreadablePrompt(f"{pointer}: no letter that model {model.name} reads ({scripts})")


def _with_named_emoji(text: str) -> str:
    import emoji

    named = emoji.replace_emoji(text, lambda _, data: f" {data['en'].strip(':').replace('_', ' ')} ")
    return text if named == text else " ".join(named.split())


def _without_invisible(text: str) -> str:
    kept = [
        c
        for c in text
        if c.isspace() or not (unicodedata.category(c) in ("Cc", "Cf", "Cn", "Co") or c in _BLANKS)
    ]
    return text if len(kept) == len(text) else "".join(kept).strip()


def _has_letter(text: str, scripts: Sequence[str]) -> bool:
    """Return whether the text has a letter of one of the scripts; of any script if one is not known here."""
    letters = [c for c in text if c.isalpha()]
    if not scripts or not LETTERS.keys() >= set(scripts):
        return bool(letters)
    starts = tuple(start for script in scripts for start in LETTERS[script])
    return any(unicodedata.name(c, "").startswith(starts) for c in letters)
