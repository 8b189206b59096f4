"""CLIPRetriever, the paper's retrieval baseline: the training clip nearest to the query."""

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
    """Plays the nearest training clip of a bundle's index, by the cosine of the encoder's raw embeddings.

    Option `videos`: the folder of the index's videos; by default their sound is read from `Sources.prepared`.
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
            ValueError: the bundle has no index, or there is no folder of training sounds.
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
        del seeds
        clips = [self.index.clips[self.nearest(query)] for query in queries]
        return [fit(self.audio.sound(c), q.duration_s) for c, q in zip(clips, queries, strict=True)]


def training_audio(videos: Path | None, prepared: Path | None) -> ClipAudio:
    """Return the training sounds, from videos if both folders are given.

    Raises:
        ValueError: neither is given, or the prepared folder cannot be used.
    """
    if videos is not None:
        return VideoAudio(videos, SAMPLE_RATE)
    if prepared is None:
        raise ValueError(
            "the retriever needs the training sounds: --prepared FOLDER, or retriever:BUNDLE?videos=FOLDER"
        )
    return PreparedAudio(prepared)
