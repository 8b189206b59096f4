"""Read attributes from words of a prompt.

"a loud, high-pitched dog" becomes "a dog", loudness 0.85 and pitch 0.85.

Recognised are adjectives before the sound source ("a low piano"), adjectives alone between commas ("piano,
low"), and adverbs ("barking loudly"). Ambiguous words are left in the text: "not loud", "slightly loud", "the
rain is loud", "a soft drink", "a low-rise building", "low flying", "bright red", and words that contradict
each other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from clipsynth.errors import AttributeUnavailable
from clipsynth.schemas.prompts import NAMES, StoredPrompt


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Quantiles of words for much of an attribute; words for little have 1 minus these.
MUCH, VERY_MUCH = 0.85, 0.95

# By attribute: words for much of it, words for little.
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
# Words that weaken or negate an adjective up to `REACH` words later.
WEAKER = _words(
    "not no never without nor neither less more hardly barely slightly somewhat too isn't isn’t aren't aren’t"
)
REACH = 3
# An adjective after one of these describes a state ("the rain is loud").
STATES = _words("is are was were be being sounds gets becomes")
# Words after which an adjective describes a look, a place, a material or a movement.
_COLOURS = "red orange yellow green blue purple violet pink brown black white grey gray gold golden silver"
_LIGHT = (
    f"{_COLOURS} side light lights lighting lamp lamps sun sunlight sunshine sunny sunset sky skies day "
    "morning moon moonlight star stars flash flames neon colour colours color colors colourful colorful "
    "eyes smile idea future room screen spot"
)
_PLACES = (
    "sea ocean water waters lake river pool well cave canyon valley hole forest woods jungle snow mud "
    "sand end space shadow shadows grass"
)
_VEHICLES = (
    "car cars train trains boat boats ferry ship plane planes jet bus motorcycle motorcycles motorbike "
    "bike truck horse horses runner lane track traffic"
)
_THINGS = (
    "pillow pillows blanket fur fabric cloth bed cushion carpet ground soil landing focus skin hands "
    "heart touch"
)
# By adjective: next words that make a name of both, or that it describes in another sense than the sound.
COMPOUNDS = {
    "soft": f"drink drinks ball toy toys serve rock shell top cheese ice {_THINGS} {_COLOURS} {_PLACES}",
    "faint": f"hearted smell scent smile hope {_LIGHT}",
    "loud": "speaker speakers hailer mouth shirt colours colors",
    "bright": _LIGHT,
    "dull": f"knife blade pain ache weather movie {_LIGHT}",
    "hissing": "cockroach cockroaches",
    "noisy": "miner miners",
    "low": "tide battery pass cut clouds cloud fuel brass whistle end water rider frequency volume "
    "speed budget bridge ceiling wall fence fat gear level power voltage pressure temperature "
    f"altitude cost quality tech bar table {_LIGHT}",
    "deep": "house fryer freeze freezer dive diver breath breathing fat sleep thought cut dish "
    f"{_COLOURS} {_PLACES}",
    "pure": f"gold water silk air wool cotton joy luck magic {_COLOURS} {_PLACES}",
    "fast": f"food forward break bowler asleep internet charger {_VEHICLES}",
    "slow": f"cooker motion mo loris dance food burn internet {_VEHICLES}",
    "dense": f"fog smoke cloud clouds undergrowth bushes air city {_PLACES}",
    "busy": "signal tone line",
    "single": "malt bed reed coil engine file track mother room ticket",
    "sparse": "vegetation trees bushes furniture",
}
# Adjectives that say nothing else than how something sounds. The others may say how something moves or looks
# before a form in -ing or -ed ("low flying", "bright lit"), unless it is one of sound.
CLEAR = _words("loud quiet noisy hissing muffled high-pitched high-pitch low-pitched low-pitch")
SOUNDING = _words(
    "barking beating beeping bleating booming bubbling buzzing chanting chattering chiming chirping "
    "clapping clicking clucking coughing cracking crackling crashing creaking croaking crowing crying "
    "drilling dripping droning drumming grinding groaning growling grumbling gurgling hammering hissing "
    "honking hooting howling humming jingling knocking laughing meowing moaning mooing playing popping "
    "purring quacking rattling ringing roaring rumbling rustling screaming screeching shouting sighing "
    "singing sizzling snapping sneezing snoring sobbing speaking splashing squeaking squealing "
    "strumming talking tapping thudding thumping thundering ticking typing wailing whimpering whining "
    "whirring whispering whistling yelling amplified distorted bowed plucked picked synthesized "
    "synthesised muted recorded sustained"
)
# Names that look like such forms.
NOUNS = _words("king string spring ring wing building lightning morning thing bed shed steed reed seed weed")
SMALL = _words(
    "a an the and or but of in on at by to from with as than for is are was were be its his her "
    "their this that it into over near"
)
VAGUE = SMALL | _words("sound sounds noise noises tone audio recording clip something thing one")
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
class WordRun:
    """Consecutive terms.

    Removing all of them removes text[start:end]. Removing the last ones puts `joint` after the others.
    """

    terms: list[Term]
    start: int
    end: int
    joint: str = ""

    def cuts(self, gone: Collection[Term]) -> Iterator[tuple[int, int, str]]:
        """Yield (start, end, replacement) for the terms in `gone`."""
        if all(term in gone for term in self.terms):
            yield self.start, self.end, ""
            return
        ends = [term.start for term in self.terms[1:]] + [self.end]
        stay = max(n for n, term in enumerate(self.terms) if term not in gone)
        yield from ((t.start, end, "") for t, end in zip(self.terms[:stay], ends, strict=False) if t in gone)
        if stay < len(self.terms) - 1:
            yield self.terms[stay].end, self.end, self.joint


def resolve_attributes(
    prompt: str | None, requested: Mapping[str, float] | None, supported: Collection[str], *, model: str
) -> tuple[str | None, dict[str, float]]:
    """Return the text to embed and the attributes: those requested, then those in words of the prompt.

    Args:
        requested: None if the request has none. If it is empty, the prompt is not read.
        supported: attributes that the model supports.

    Raises:
        AttributeUnavailable: the model does not support a requested attribute.
    """
    for name in requested or {}:
        if name not in supported:
            offered = f"it supports {', '.join(supported)}" if supported else "it supports no attributes"
            raise AttributeUnavailable(f"/attributes/{name}: model {model} does not support it; {offered}")
    if prompt is None or requested == {}:
        return prompt, dict(requested or {})
    rest, found = read(prompt, supported)
    found |= requested or {}
    return rest, {name: found[name] for name in NAMES if name in found}


def bind_words(
    parts: Sequence[str], requested: Mapping[str, float] | None, supported: Collection[str]
) -> list[StoredPrompt]:
    """Return the sounds of a sentence as prompts; words of a part bind to it.

    Args:
        requested: attributes of the whole request, which no word changes. If it is empty, no part is read.
        supported: attributes that the model supports.
    """
    if requested == {}:
        return [StoredPrompt(text=part) for part in parts]
    found = [read(part, supported) for part in parts]
    own = [
        {name: word for name, word in words.items() if name not in (requested or ())} for _, words in found
    ]
    return [StoredPrompt(text=text, attributes=words) for (text, _), words in zip(found, own, strict=True)]


def read(text: str, supported: Collection[str]) -> tuple[str, dict[str, float]]:
    """Return a prompt without the words for `supported` attributes, and their quantiles by name.

    The prompt is unchanged if no sound source would remain ("a loud noise"). Reading the result again finds
    no further attribute.
    """
    asked: dict[str, float] = {}
    while True:
        runs = list(_find(text))
        gone = _consistent([term for run in runs for term in run.terms], supported)
        asked = {**{term.name: term.quantile for term in gone}, **asked}
        rest = _without(text, [cut for run in runs for cut in run.cuts(gone)])
        if rest == text or all(word.lower() in VAGUE for word in WORD.findall(rest)):
            return text, asked
        text = rest


def _consistent(found: list[Term], supported: Collection[str]) -> set[Term]:
    """Return the terms of supported attributes, except those with terms for both much and little."""
    sides: dict[str, set[bool]] = {}
    for term in found:
        sides.setdefault(term.name, set()).add(term.quantile > 0.5)
    return {term for term in found if term.name in supported and len(sides[term.name]) == 1}


def _without(text: str, cuts: list[tuple[int, int, str]]) -> str:
    """Return the text without the cuts; an article before a cut is adapted to the next word (a, an)."""
    for start, end, instead in sorted(cuts, reverse=True):
        before, after = text[:start], instead + text[end:]
        if article := re.search(r"(?<![\w'’-])(a)n?(\s+)$", before, re.IGNORECASE):
            n = "n" if after[:1].lower() in set("aeiou") else ""
            before = f"{before[: article.start()]}{article[1]}{n}{article[2]}"
        text = before + after
    return re.sub(r"\s+([,;.!])", r"\1", text).strip(" ,;") if cuts else text


def _pattern(words: dict[str, tuple[str, str]]) -> str:
    """Return a pattern for one of the words after up to eight of STRONGER; a hyphen may be a space."""
    either = "|".join(
        word.replace("-", r"[-\s]") for sides in words.values() for word in " ".join(sides).split()
    )
    return rf"(?<![\w'’-])(?:(?:{STRONGER})\s*,?\s+){{0,8}}(?:{either})(?![\w'’-])"


ADJECTIVE, ADVERB = (re.compile(_pattern(words), re.IGNORECASE) for words in (ADJECTIVES, ADVERBS))
ADJECTIVES_JOINED = re.compile(rf"{ADJECTIVE.pattern}(?:{JOINT}{ADJECTIVE.pattern})*", re.IGNORECASE)


def _find(text: str) -> Iterator[WordRun]:
    for match in ADJECTIVES_JOINED.finditer(text):
        terms = [_term(ADJECTIVES, m) for m in ADJECTIVE.finditer(text, match.start(), match.end())]
        run = None if _weakened(text[: match.start()]) else _listed(text, terms) or _before_thing(text, terms)
        if run:
            yield run
    for match in ADVERB.finditer(text):
        if not _weakened(text[: match.start()]):
            yield WordRun([_term(ADVERBS, match)], len(text[: match.start()].rstrip()), match.end())


def _term(words: dict[str, tuple[str, str]], match: re.Match[str]) -> Term:
    *stronger, word = re.sub(r"\s(pitch|paced)", r"-\1", match[0].lower()).split()
    name = next(name for name, sides in words.items() if word in " ".join(sides).split())
    quantile = VERY_MUCH if stronger else MUCH
    much = word in words[name][0].split()
    return Term(name, quantile if much else round(1 - quantile, 2), word, match.start(), match.end())


def _weakened(before: str) -> bool:
    """Return whether the text before a word weakens or negates it."""
    words = WORD.findall(re.split(r"[,;.:!?]", before.lower())[-1])
    return bool(WEAKER & set(words[-REACH:]))


def _listed(text: str, terms: list[Term]) -> WordRun | None:
    """Return terms alone between commas, with the comma before them, else the one after them."""
    before, after = text[: terms[0].start].rstrip(), text[terms[-1].end :]
    comma = re.match(r"\s*(?:[,;]\s*|$|(?=[.!]))", after)
    if comma is None or (before and before[-1] not in ",;"):
        return None
    start, end = (len(before) - 1, 0) if before else (0, comma.end())
    return WordRun(terms, start, terms[-1].end + end)


def _before_thing(text: str, terms: list[Term]) -> WordRun | None:
    """Return the terms before a sound source, with the words that join them to it."""
    behind = BEHIND.match(text, terms[-1].end)
    said = WORD.findall(text[: terms[0].start].lower())[-1:]
    if behind is None or behind["word"].lower() in SMALL or STATES & set(said):
        return None
    # "loud and clear": no sound source follows.
    if behind["joint"].strip() and (behind["next"] or "a").lower() in SMALL:
        return None
    end = behind.start("word")
    # In "a loud soft drink", the sound source is the soft drink.
    for place, term in enumerate(terms):
        if _describes_no_sound(term, behind["word"].lower()):
            terms, end = terms[:place], term.start
            break
    return WordRun(terms, terms[0].start, end, joint=" ") if terms else None


def _describes_no_sound(term: Term, word: str) -> bool:
    """Return whether an adjective before this word says, or may say, something else than how it sounds."""
    if word in COMPOUNDS.get(term.word, "").split():
        return True
    is_form = word.endswith(("ing", "ed", "lit")) and word not in SOUNDING | NOUNS
    return is_form and term.word not in CLEAR
