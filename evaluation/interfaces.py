"""The interface of systems under evaluation. A row of the table is a `Synthesizer`.

The command line names a system as NAME=KIND:ARGUMENT, e.g. "CLIPSynth=bundle:runs/demo/bundle". A kind is a
key of `FACTORIES`, or module:function.
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

SAMPLE_RATE = 16000  # Hz, of all sounds that are compared
QueryKind = Literal["text", "image", "clip"]


@dataclass(frozen=True)
class Query:
    """A `prompt`, an `image`, or neither: then the sound of `clip` itself, to be reconstructed.

    Attributes:
        label: class of the query, for judging; systems must not use it.
        clip: file of the labelled clip behind the query, relative to the folder of clips.
        duration_s: length of the sound in seconds.
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
        version: short hash of weights and settings; it must change if the sound of the same query and
            seed may change. Sounds are cached under it.
        kinds: the kinds of query that it supports.
        deterministic: whether the seed has no effect; such a system makes each query once.
        training_query: the kind of query in its training, for the table: "image", "text", "image+text", "–".
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
        """Return a waveform (T,) for each query and seed.

        float32 in [-1, 1] at `SAMPLE_RATE`, T = round(duration_s * SAMPLE_RATE). Another length is no
        error, but is reported; distances use the first `duration_s` seconds, padded with silence. The sound
        of query n depends only on query n and seed n (up to 2e-3), not on the rest of the batch.

        Raises:
            ValueError: the system cannot answer a query.
        """
        ...


@dataclass(frozen=True)
class Sources:
    """Folders of recordings: the labelled videos, and the output of `clipsynth prepare`."""

    clips: Path
    prepared: Path | None = None


# Functions (name, argument, sources) -> Synthesizer.
FACTORIES = {
    "bundle": "evaluation.systems.bundle:Bundle.load",
    "retriever": "evaluation.systems.retriever:Retriever.load",
    "reconstruction": "evaluation.systems.bundle:Reconstruction.load",
    "http": "evaluation.systems.service:Service.load",
    "folder": "evaluation.systems.external:Folder.load",
    "specvqgan": "evaluation.systems.specvqgan:SpecVqgan.load",
}


def load_object(path: str) -> Callable[..., object]:
    """Import "module:name" or "module:name.name".

    Raises:
        ValueError: the module or name does not exist, or is not callable.
    """
    module, _, names = path.partition(":")
    try:
        found: object = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be imported (expected module:function): {error}") from error
    if not callable(found):
        raise ValueError(f"{path!r} is not a function")
    return found


def load_system(spec: str, sources: Sources) -> Synthesizer:
    """Build the system of "NAME=KIND:ARGUMENT".

    Raises:
        ValueError: not of that form, the kind is unknown, or its factory raised the error.
    """
    name, equals, rest = spec.partition("=")
    kind, _, argument = rest.partition(":")
    if kind not in FACTORIES:  # module:function:ARGUMENT
        function, _, argument = argument.partition(":")
        kind = f"{kind}:{function}" if function else ""
    if not (name and equals and kind and argument):
        raise ValueError(
            f"{spec!r} is not of the form NAME=KIND:ARGUMENT with the kind {', '.join(FACTORIES)} "
            "or module:function"
        )
    return cast(Synthesizer, load_object(FACTORIES.get(kind, kind))(name, argument, sources))


def split_options(argument: str, types: Mapping[str, Callable[[str], Any]]) -> tuple[str, dict[str, Any]]:
    """Return place and options of "PLACE?key=value&key=value".

    Raises:
        ValueError: an option is not in `types`, or has a value of another type.
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
