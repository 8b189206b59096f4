"""CLIPRetriever, the paper's retrieval baseline: the training clip whose embedding is nearest to the query's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.clips import read_sound
from evaluation.sound import fingerprint, fit
from evaluation.systems import SAMPLE_RATE, Query, QueryKind, Sources, split_options
from models.encoders import JointEncoder, load_encoder
from models.index import Index
from models.manifest import Manifest
from models.shards import ShardReader


class Retriever:
    """Plays the training clip of a bundle's index that lies nearest, by the cosine of embeddings as the encoder gives them.

    Option `videos`: the folder that the index's videos are in; without it their sound is read from `Sources.prepared`.
    """

    kinds: frozenset[QueryKind] = frozenset({"text", "image"})
    deterministic, generative, unlabeled, training_query = True, False, True, "–"

    def __init__(
        self,
        name: str,
        version: str,
        encoder: JointEncoder,
        index: Index,
        *,
        videos: Path | None,
        prepared: Path | None,
    ) -> None:
        self.name, self.version = name, version
        self.encoder, self.index = encoder, index
        self.videos, self.prepared = videos, prepared
        self._shards: dict[tuple[str, float], dict[str, Any]] = {}
        if videos is None:
            if prepared is None or not (prepared / "index.jsonl").is_file():
                raise ValueError(
                    "the retriever needs the training sounds: --prepared FOLDER, or retriever:BUNDLE?videos=FOLDER"
                )
            self._reader = ShardReader(prepared / "shards")
            lines = map(json.loads, (prepared / "index.jsonl").read_text().splitlines())
            self._shards = {(line["video"], line["start_s"]): line for line in lines}

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
            videos=options.get("videos"),
            prepared=sources.prepared,
        )

    def nearest(self, query: Query) -> int:
        """Return the number in the index of the clip nearest to a text or picture."""
        embed = (
            self.encoder.encode_text([query.prompt])
            if query.prompt is not None
            else self.encoder.encode_image([query.image])  # type: ignore[list-item]
        )
        return int(self.index.nearest(embed)[0, 0])

    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        return [
            fit(self.sound(self.nearest(query)), query.duration_s)
            for query, _ in zip(queries, seeds, strict=True)
        ]

    def sound(self, i: int) -> np.ndarray:
        """Return the sound (T,) of clip `i` of the index, at its own level."""
        clip = self.index.clips[i]
        if self.videos is not None:
            start = round(clip["start_s"] * SAMPLE_RATE)
            whole = read_sound(self.videos / clip["video"])
            return whole[start : start + round(clip["duration_s"] * SAMPLE_RATE)]
        line = self._shards.get((clip["video"], clip["start_s"]))
        if line is None:
            raise ValueError(f"{self.prepared} has no clip of {clip['video']} at {clip['start_s']} s")
        waveform = self._reader.array(line, "waveform")
        return (waveform / 32767 / line["gain"]).astype(np.float32)
