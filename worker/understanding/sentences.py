"""The sounds that a sentence asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clipsynth.schemas.prompts import MAX_PROMPTS
from clipsynth.schemas.sentences import Part, Piece, in_order, pieces
from models.conditioning.familiarity import Neighbourhood

# Familiarity of each part of several sounds; after a weak separator.
KNOWN, WELL_KNOWN = 0.18, 0.26
# Cosine of the surroundings of two parts that are one sound; if they may be parts of one thing.
SAME, SAME_WHOLE = 0.75, 0.3
# Cosine of a part with both together, below which it only names a property of the other one.
PROPERTY, ADDED = 0.55, 0.5


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the one two three some un une le la les des ein eine einen einem einer der die das el los las una "
    "uno unos il lo gli um uma o os as een het de jeden jedna bir"
)
_POSSESSIVES = _words(
    "his her its their my your our own sein seine seinem ihr ihre ihrem ihrer su sus son sa ses leur leurs "
    "suo sua suoi zijn haar jego jej"
)
_AND = _words("and und et y e ed en i ve и , ; + &") | {", and", ", und", ", et", ", y", ", e", ", и"}
# A second part that begins with one of these continues the first one ("up and down").
_PARTICLES = _words("up down off out on again over forth back away around in")
_BEHIND_VERBS = _PARTICLES | _words("at to from into with by for and")


def parts_of(text: str, place: Callable[[str], Neighbourhood]) -> list[Part]:
    """Return the sounds that a text asks for: itself if it is one; `place` is as of `sounds_in`."""
    found = pieces(text)
    if not 1 < len(found) <= 2 * MAX_PROMPTS:
        return [Part(text)]
    groups = sounds_in(found, place)
    if not 1 < len(groups) <= MAX_PROMPTS:
        return [Part(text)]
    return in_order([Part(joined(group), group[0].order) for group in groups])


def sounds_in(found: Sequence[Piece], place: Callable[[str], Neighbourhood]) -> list[list[Piece]]:
    """Group the pieces of a sentence into sounds; `place` finds a text among the training frames."""
    groups, best = [[found[0]]], place(found[0].text)
    for piece in found[1:]:
        right = place(piece.text)
        if _is_another(groups[-1][-1], piece, best, right, place):
            groups.append([piece])
            best = right
        else:
            groups[-1].append(piece)
            best = max(best, right, key=lambda known: known.familiarity)
    return groups


def _is_another(
    before: Piece,
    piece: Piece,
    left: Neighbourhood,
    right: Neighbourhood,
    place: Callable[[str], Neighbourhood],
) -> bool:
    """Return whether a piece is another sound than the group before it, whose best known piece is `left`."""
    needed = WELL_KNOWN if piece.is_weak else KNOWN
    words, other = piece.text.lower().split(), before.text.lower().split()
    # "the strings and the bow of a violin"
    is_shared = words[0] == other[0] == "the" and "of" in words and "of" not in other
    same = float(left.around @ right.around) >= (SAME_WHOLE if is_shared else SAME)
    if left.familiarity < KNOWN or right.familiarity < needed or same:
        return False
    if words[0] in _POSSESSIVES | _PARTICLES or words[0] == other[-1]:
        return False
    # "a dog, barking loudly": what the first one does.
    if words[0].endswith("ing") and (len(words) == 1 or words[1] in _BEHIND_VERBS):
        return False
    if words[0] in _DETERMINERS or other[0] not in _DETERMINERS or piece.joint.lower() not in _AND:
        return True
    # Two adjectives of one thing: "a black and white cat", "un chat noir et blanc".
    both = place(joined([before, piece])).embedding
    if len(other) == 2 and len(words) > 1:
        return float(both @ left.embedding) >= PROPERTY
    return len(words) > 1 or float(both @ right.embedding) >= ADDED


def joined(parts: Sequence[Piece]) -> str:
    """Return pieces of one sound as a text again."""
    text = parts[0].text
    for piece in parts[1:]:
        space = "" if piece.joint[:1] in ",;" else " "
        text += f"{space}{piece.joint} {piece.text}" if piece.joint else f" {piece.text}"
    return text
