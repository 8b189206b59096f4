"""An HTTP service with our API."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from clipsynth.client.client import Client
from clipsynth.client.retry import ServiceError
from clipsynth.schemas.generation import Generation
from evaluation.audio import fingerprint
from evaluation.interfaces import Query, QueryKind, Sources, split_options
from evaluation.systems.external import read_audio

PATIENCE_S = 10.0  # for a service that is away or full


class Service:
    """A running CLIPSynth service; the queries of one call run at the same time.

    Option `learned_from` as for bundles.
    """

    kinds: frozenset[QueryKind] = frozenset({"text", "image"})
    deterministic, generative = False, True

    def __init__(self, name: str, client: Client, url: str, *, learned_from: str = "image") -> None:
        self.name, self.client = name, client
        self.training_query, self.unlabeled = learned_from, learned_from == "image"
        with _errors_of(url):
            served = client.models()
        if not served:
            raise ValueError(f"{url} serves no model")
        self.model = served[0].name
        self.version = fingerprint("http", f"{url.rstrip('/')}/", served[0].name, served[0].version)

    @classmethod
    def load(cls, name: str, argument: str, sources: Sources) -> Service:
        """Build from "//host:port" or "https://host", with "?learned_from=text&api_key=cs_…"."""
        del sources
        place, options = split_options(argument, {"learned_from": str, "api_key": str})
        url = place if "://" in place else f"http:{place}"
        client = Client(url, api_key=options.pop("api_key", None), patience_s=PATIENCE_S)
        return cls(name, client, url, **options)

    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        with _errors_of(self.name):
            made = [self._submit(query, seed) for query, seed in zip(queries, seeds, strict=True)]
            return [self._sound(generation) for generation in made]

    def _submit(self, query: Query, seed: int) -> Generation:
        file = io.BytesIO()
        if query.image is not None:
            query.image.save(file, "PNG")
        options = {"seed": seed, "duration_s": query.duration_s, "model": self.model}
        return self.client.submit(query.prompt, image=file.getvalue() or None, **options)

    def _sound(self, made: Generation) -> np.ndarray:
        *_, ended = self.client.follow(made.id)
        [sound] = self.client.sounds(ended)
        return read_audio(io.BytesIO(sound.data), f"{self.name}, generation {made.id}")


@contextmanager
def _errors_of(place: str) -> Iterator[None]:
    try:
        yield
    except ServiceError as error:
        raise ValueError(f"{place}: {error}") from error
