"""Plain words of a prompt that say what a sound is like, read as attributes: "a loud, high-pitched dog" is a dog, loudness 0.85 and pitch 0.85.

Read are words that stand before what sounds ("a low piano"), by themselves between commas ("piano, low"), and adverbs ("barking loudly"). What may mean
something else is left alone: "not loud", "slightly loud", "the rain is loud", "a soft drink", "a low-rise building", and words that contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from clipsynth.errors import AttributeUnavailable
from clipsynth.schemas.request import NAMES as ATTRIBUTES

MUCH, VERY_MUCH = 0.85, 0.95  # quantiles; of little they are the rest to 1

# By attribute: the words for much of it, and for little.
ADJECTIVES = {
    "loudness": ("loud", "quiet soft faint"),
    "brightness": ("bright", "dull muffled"),
    "pitch": ("high-pitched high-pitch", "low-pitched low-pitch low deep"),
    "noisiness": ("noisy hissing", "tonal pure"),
    "density": ("fast-paced busy fast dense", "slow-paced slow sparse single"),
}
ADVERBS = {
    "loudness": ("loudly", "quietly softly faintly"),
    "noisiness": ("noisily", ""),
    "density": ("", "slowly"),
}
STRONGER = "very|really|extremely|incredibly|super"
# Up to `REACH` words before an adjective these take from it, or turn it round.
WEAKER = frozenset(
    [
        "not",
        "no",
        "never",
        "without",
        "nor",
        "neither",
        "less",
        "more",
        "hardly",
        "barely",
        "slightly",
        "somewhat",
        "too",
        "isn't",
        "isn’t",
        "aren't",
        "aren’t",
    ]
)
REACH = 3
STATES = frozenset(
    ["is", "are", "was", "were", "be", "being", "sounds", "gets", "becomes"]
)  # what follows says something, and names nothing
# With the word behind they name a thing: how that sounds is not what they say.
NAMES = {
    "soft": "drink drinks ball toy toys serve rock shell close",
    "loud": "speaker speakers hailer",
    "bright": "side light lights sun sunlight sky day",
    "dull": "day knife blade",
    "hissing": "cockroach cockroaches",
    "noisy": "miner miners",
    "low": "tide battery pass cut light clouds fuel brass whistle end water rider",
    "deep": "sea ocean water house fryer freeze forest space snow purple breath breathing",
    "pure": "gold water silk air",
    "fast": "food forward car cars train trains boat boats lane",
    "slow": "cooker motion loris car cars train trains boat boats",
    "dense": "forest fog jungle smoke",
    "busy": "signal tone line",
    "single": "malt bed reed coil engine",
}
SMALL = frozenset(
    [
        "a",
        "an",
        "the",
        "and",
        "or",
        "but",
        "of",
        "in",
        "on",
        "at",
        "by",
        "to",
        "from",
        "with",
        "as",
        "than",
        "for",
        "is",
        "are",
        "was",
        "were",
        "be",
        "its",
        "his",
        "her",
        "their",
        "this",
        "that",
        "it",
        "into",
        "over",
        "near",
    ]
)
VAGUE = SMALL | frozenset(
    ["sound", "sounds", "noise", "noises", "tone", "audio", "recording", "clip", "something", "thing", "one"]
)
WORD = re.compile(r"[\w'’-]+")
JOINT = r"(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s+)"
BEHIND = re.compile(rf"(?P<joint>{JOINT})(?P<word>[\w'’-]+)(?:\s+(?P<next>[\w'’-]+))?")


@dataclass(frozen=True)
class Term:
    """A word that asks for `quantile` of attribute `name`, at text[start:end]."""

    name: str
    quantile: float
    word: str
    start: int
    end: int


@dataclass(frozen=True)
class Run:
    """Terms one after the other; without them all, text[start:end] goes. Without the last ones, what joins them becomes `joint`."""

    terms: list[Term]
    start: int
    end: int
    joint: str = ""

    def cuts(self, gone: Collection[Term]) -> Iterator[tuple[int, int, str]]:
        """Yield (start, end, what comes there instead) for the terms that are gone."""
        if all(term in gone for term in self.terms):
            yield self.start, self.end, ""
            return
        ends = [term.start for term in self.terms[1:]] + [self.end]
        stay = max(n for n, term in enumerate(self.terms) if term not in gone)
        yield from ((t.start, end, "") for t, end in zip(self.terms[:stay], ends, strict=False) if t in gone)
        if stay < len(self.terms) - 1:
            yield self.terms[stay].end, self.end, self.joint


def read(text: str, taken: Collection[str]) -> tuple[str, dict[str, float]]:
    """Return a prompt without the words that ask for attributes among `taken`, and those as quantiles by name.

    The prompt stays whole where nothing that sounds would be left ("a loud noise"). What is returned asks in words for no further attribute.
    """
    asked: dict[str, float] = {}
    while True:
        runs = list(_find(text))
        gone = _to_be_read([term for run in runs for term in run.terms], taken)
        asked = {**{term.name: term.quantile for term in gone}, **asked}
        rest = _without(text, [cut for run in runs for cut in run.cuts(gone)])
        if rest == text or all(word.lower() in VAGUE for word in WORD.findall(rest)):
            return text, asked
        text = rest


def _to_be_read(found: list[Term], taken: Collection[str]) -> set[Term]:
    """Return the terms of those attributes among `taken` of which much is asked, or little, but not both."""
    sides: dict[str, set[bool]] = {}
    for term in found:
        sides.setdefault(term.name, set()).add(term.quantile > 0.5)
    return {term for term in found if term.name in taken and len(sides[term.name]) == 1}


def _without(text: str, cuts: list[tuple[int, int, str]]) -> str:
    """Return the text without the cuts; an article before one fits what then follows it."""
    for start, end, instead in sorted(cuts, reverse=True):
        before, after = text[:start], instead + text[end:]
        if article := re.search(r"(?<![\w'’-])(a)n?(\s+)$", before, re.IGNORECASE):
            n = "n" if after[:1].lower() in set("aeiou") else ""
            before = f"{before[: article.start()]}{article[1]}{n}{article[2]}"
        text = before + after
    return re.sub(r"\s+([,;.!])", r"\1", text).strip(" ,;") if cuts else text


# --------------------------------------------------------------------------------------------------- finding


def _pattern(words: dict[str, tuple[str, str]]) -> str:
    """Return what matches one of the words, with what makes it stronger; a hyphen may be a space."""
    either = "|".join(
        word.replace("-", r"[-\s]") for sides in words.values() for word in " ".join(sides).split()
    )
    return rf"(?<![\w'’-])(?:(?:{STRONGER})\s+){{0,3}}(?:{either})(?![\w'’-])"


ADJECTIVE, ADVERB = (re.compile(_pattern(words), re.IGNORECASE) for words in (ADJECTIVES, ADVERBS))
ADJECTIVES_JOINED = re.compile(rf"{ADJECTIVE.pattern}(?:{JOINT}{ADJECTIVE.pattern})*", re.IGNORECASE)


def _find(text: str) -> Iterator[Run]:
    for match in ADJECTIVES_JOINED.finditer(text):
        terms = [_term(ADJECTIVES, m) for m in ADJECTIVE.finditer(text, match.start(), match.end())]
        run = None if _weakened(text[: match.start()]) else _listed(text, terms) or _before_thing(text, terms)
        if run:
            yield run
    for match in ADVERB.finditer(text):
        if not _weakened(text[: match.start()]):
            yield Run([_term(ADVERBS, match)], len(text[: match.start()].rstrip()), match.end())


def _term(words: dict[str, tuple[str, str]], match: re.Match[str]) -> Term:
    *stronger, word = re.sub(r"\s(pitch|paced)", r"-\1", match[0].lower()).split()
    name = next(name for name, sides in words.items() if word in " ".join(sides).split())
    quantile = VERY_MUCH if stronger else MUCH
    much = word in words[name][0].split()
    return Term(name, quantile if much else round(1 - quantile, 2), word, match.start(), match.end())


def _weakened(before: str) -> bool:
    """Return whether what stands before a word takes from it."""
    words = WORD.findall(re.split(r"[,;.:!?]", before.lower())[-1])
    return bool(WEAKER & set(words[-REACH:]))


def _listed(text: str, terms: list[Term]) -> Run | None:
    """Return terms that stand by themselves between commas, with the comma before them, or else the one behind."""
    before, after = text[: terms[0].start].rstrip(), text[terms[-1].end :]
    comma = re.match(r"\s*(?:[,;]\s*|$|(?=[.!]))", after)
    if comma is None or (before and before[-1] not in ",;"):
        return None
    return (
        Run(terms, len(before) - 1, terms[-1].end) if before else Run(terms, 0, terms[-1].end + comma.end())
    )


def _before_thing(text: str, terms: list[Term]) -> Run | None:
    """Return the terms that stand before something that sounds, with what joins them to that."""
    behind = BEHIND.match(text, terms[-1].end)
    said = WORD.findall(text[: terms[0].start].lower())[-1:]
    if behind is None or behind["word"].lower() in SMALL or STATES & set(said):
        return None
    if (
        behind["joint"].strip() and (behind["next"] or "a").lower() in SMALL
    ):  # "loud and clear": no thing follows
        return None
    end = behind.start("word")
    for place, term in enumerate(terms):  # of "a loud soft drink" the thing is the soft drink
        if behind["word"].lower() in NAMES.get(term.word, "").split():
            terms, end = terms[:place], term.start
            break
    return Run(terms, terms[0].start, end, joint=" ") if terms else None


def resolve_attributes(
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
    rest, said = read(prompt, taken)
    settled = {**said, **(asked or {})}
    return rest, {name: settled[name] for name in ATTRIBUTES if name in settled}
