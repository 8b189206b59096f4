"""Systems: whatever makes a sound of a query, behind one interface. A row of the table is a `Synthesizer`.

A system is named on the command line as NAME=KIND:ARGUMENT, e.g. "CLIPSynth=bundle:runs/demo/bundle". `FACTORIES` says which function builds each
kind; a further kind is one more line there, or KIND written as module:function.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

SAMPLE_RATE = 16000  # Hz; of everything that is compared
QueryKind = Literal["text", "image", "clip"]


@dataclass(frozen=True)
class Query:
    """What is asked for: a `prompt`, or an `image`, or (neither) the sound of `clip` itself, to be reconstructed.

    Attributes:
        label: class that should be heard; for judging, never shown to a system.
        clip: file of the labelled clip that the query was taken from, relative to the folder of clips.
        duration_s: length of the sound, in seconds.
    """

    label: str
    clip: str
    prompt: str | None = None
    image: Image.Image | None = None
    duration_s: float = 4.0

    @property
    def kind(self) -> QueryKind:
        if self.prompt is not None:
            return "text"
        return "clip" if self.image is None else "image"


class Synthesizer(Protocol):
    """A system under evaluation.

    Attributes:
        name: row of the table.
        version: short hash that changes whenever the same query and seed might sound different: weights, settings. Sounds are cached under it.
        kinds: the queries it takes; it is not asked others.
        deterministic: whether the seed is without effect; such a system is asked each query once.
        training_query: what it learned from, for the table: "image", "text", "image+text" or "–".
        generative, unlabeled: the first two columns of the paper's Table 1.
    """

    name: str
    version: str
    kinds: frozenset[QueryKind]
    deterministic: bool
    training_query: str
    generative: bool
    unlabeled: bool

    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        """Return a waveform (T,) per query and seed: float32 in [-1, 1] at `SAMPLE_RATE`, T = round(duration_s * SAMPLE_RATE).

        Another length is no error but is reported: distances take the first `duration_s` seconds, with silence where there are fewer.

        Query n's sound depends on query n and seed n alone (up to 2e-3), whatever else is in the batch. The caller chooses how many come at once.

        Raises:
            ValueError: a query that it cannot serve.
        """
        ...


@dataclass(frozen=True)
class Sources:
    """Where systems find recordings: `clips` is the folder of labelled videos, `prepared` what `clipsynth prepare` made of its training part."""

    clips: Path
    prepared: Path | None = None


Factory = Callable[[str, str, Sources], Synthesizer]  # (name, argument, sources)

FACTORIES = {
    "bundle": "evaluation.systems.bundle:Bundle.load",
    "retriever": "evaluation.systems.retriever:Retriever.load",
    "reconstruction": "evaluation.systems.bundle:Reconstruction.load",
    "http": "evaluation.systems.external:Service.load",
    "folder": "evaluation.systems.external:Folder.load",
    "specvqgan": "evaluation.systems.specvqgan:SpecVqgan.load",
}


def load_object(path: str) -> Callable[..., object]:
    """Return what "module:name" or "module:name.name" names.

    Raises:
        ValueError: no such module or name.
    """
    module, _, names = path.partition(":")
    try:
        found: object = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be imported (expected module:function): {error}") from error
    if not callable(found):
        raise ValueError(f"{path!r} is no function")
    return found


def load_system(spec: str, sources: Sources) -> Synthesizer:
    """Build the system of "NAME=KIND:ARGUMENT".

    Raises:
        ValueError: not of that form, an unknown kind, or what the kind's own factory refuses.
    """
    name, equals, rest = spec.partition("=")
    kind, _, argument = rest.partition(":")
    if kind not in FACTORIES:  # module:function:ARGUMENT
        function, _, argument = argument.partition(":")
        kind = f"{kind}:{function}" if function else ""
    if not (name and equals and kind and argument):
        raise ValueError(
            f"{spec!r} is not of the form NAME=KIND:ARGUMENT with a KIND of {', '.join(FACTORIES)} or module:function"
        )
    return cast(Synthesizer, load_object(FACTORIES.get(kind, kind))(name, argument, sources))


def split_options(argument: str, types: Mapping[str, Callable[[str], Any]]) -> tuple[str, dict[str, Any]]:
    """Return place and options of "PLACE?key=value&key=value".

    Raises:
        ValueError: an option that is not among `types`, or not of its type.
    """
    place, _, query = argument.partition("?")
    options: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, separator="&"):
        if key not in types:
            raise ValueError(f"{argument!r}: no option {key!r}; there are {', '.join(types) or 'none'}")
        try:
            options[key] = types[key](value)
        except ValueError as error:
            raise ValueError(f"{argument!r}: {key}: {error}") from None
    return place, options
