"""CLIPRetriever, the paper's retrieval baseline: the training clip whose embedding is nearest to the query's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.audio import fingerprint, fit
from evaluation.interfaces import SAMPLE_RATE, Query, QueryKind, Sources, split_options
from models.bundle import Manifest
from models.networks.encoder import JointEncoder
from models.networks.load_encoder import load_encoder
from models.retrieval.clip_audio import ClipAudio, PreparedAudio, VideoAudio
from models.retrieval.clip_index import Index


class Retriever:
    """Plays the training clip of a bundle's index that lies nearest, by the cosine of embeddings as the encoder gives them.

    Option `videos`: the folder that the index's videos are in; without it their sound is read from `Sources.prepared`.
    """

    kinds: frozenset[QueryKind] = frozenset({"text", "image"})
    deterministic, generative, unlabeled, training_query = True, False, True, "–"

    def __init__(
        self, name: str, version: str, encoder: JointEncoder, index: Index, audio: ClipAudio
    ) -> None:
        self.name, self.version = name, version
        self.encoder, self.index, self.audio = encoder, index, audio

    @classmethod
    def load(cls, name: str, argument: str, sources: Sources) -> Retriever:
        """Build from "BUNDLE" or "BUNDLE?videos=FOLDER".

        Raises:
            ValueError: the bundle has no index, or the training sounds are nowhere.
        """
        place, options = split_options(argument, {"videos": Path})
        folder = Path(place)
        manifest = Manifest.read(folder)
        index = Index.read(folder)
        if index is None:
            raise ValueError(f"{folder} has no retrieval index (index.safetensors)")
        return cls(
            name,
            fingerprint("retriever", manifest.sha256["index.safetensors"], manifest.sha256["index.jsonl"]),
            load_encoder(folder / "encoder"),
            index,
            training_audio(options.get("videos"), sources.prepared),
        )

    def nearest(self, query: Query) -> int:
        """Return the number in the index of the clip nearest to a text or image."""
        embed = (
            self.encoder.encode_text([query.prompt])
            if query.prompt is not None
            else self.encoder.encode_image([query.image])  # type: ignore[list-item]
        )
        return int(self.index.nearest(embed)[0, 0])

    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        return [
            fit(self.audio.sound(self.index.clips[self.nearest(query)]), query.duration_s)
            for query, _ in zip(queries, seeds, strict=True)
        ]


def training_audio(videos: Path | None, prepared: Path | None) -> ClipAudio:
    """Return the training sounds, of videos where both are named.

    Raises:
        ValueError: neither is, or the prepared folder is none.
    """
    if videos is not None:
        return VideoAudio(videos, SAMPLE_RATE)
    if prepared is None:
        raise ValueError(
            "the retriever needs the training sounds: --prepared FOLDER, or retriever:BUNDLE?videos=FOLDER"
        )
    return PreparedAudio(prepared)
