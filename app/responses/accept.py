"""Choose a representation by an Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from clipsynth.errors import NotAcceptable

_RANGE = re.compile(r"\*/\*|[\w!#$&^.+-]+/(?:\*|[\w!#$&^.+-]+)")
_WEIGHT = re.compile(r"0(?:\.\d{0,3})?|1(?:\.0{0,3})?")
# Other names of media types, as clients send them.
_SYNONYMS = {
    "audio/wave": "audio/wav",
    "audio/x-wav": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/x-flac": "audio/flac",
    "audio/mp3": "audio/mpeg",
    "application/ogg": "audio/ogg",
}


def best_media_type(offered: Sequence[str], header: str) -> str:
    """Return the offered media type with the highest quality, of equals the first.

    Invalid members of the header are ignored. A header without a valid member accepts everything.

    Raises:
        NotAcceptable: the header accepts none of them.
    """
    ranges: dict[str, float] = {}
    for member in header.lower().split(","):
        name, *parameters = (word.strip() for word in member.split(";"))
        weights = [p.removeprefix("q=") for p in parameters if p.startswith("q=")] or ["1"]
        if _RANGE.fullmatch(name) and _WEIGHT.fullmatch(weights[0]):
            name = _SYNONYMS.get(name, name)
            ranges[name] = max(float(weights[0]), ranges.get(name, 0.0))
    ranges = ranges or {"*/*": 1.0}

    def quality(media_type: str) -> float:
        # The most specific range decides.
        names = (media_type, media_type.partition("/")[0] + "/*", "*/*")
        return next((ranges[name] for name in names if name in ranges), 0.0)

    best = max(offered, key=quality)
    if quality(best) == 0:
        raise NotAcceptable(f"Accept: none of {', '.join(dict.fromkeys(offered))}")
    return best
