"""SpecVQGAN, the baseline of the paper's Table 1, trained with recipes/specvqgan-demo.yaml.

On the command line: "SpecVQGAN=specvqgan:runs/specvqgan-demo/pipeline"
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.baselines.specvqgan import SpecVqganPipeline
from models.bundle import file_sha256


class SpecVqgan:
    """A folder that `SpecVqganPipeline` loads; the queries of one call share the transformer's batch."""

    kinds = frozenset({"text", "image"})
    deterministic = False
    generative = unlabeled = True
    training_query = "image"

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.pipe = name, SpecVqganPipeline.from_pretrained(folder)
        self.pipe.set_progress_bar_config(disable=True)
        hashes = [file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()]
        self.version = hashlib.sha256("".join(hashes).encode()).hexdigest()[:12]

    @classmethod
    def load(cls, name: str, argument: str, sources: object) -> SpecVqgan:
        """Build from the FOLDER."""
        del sources
        return cls(name, Path(argument))

    @torch.inference_mode()
    def synthesize(self, queries: Sequence[Any], seeds: Sequence[int]) -> list[np.ndarray]:
        """Return a waveform (T,) per query (`prompt` or `image`, and `duration_s`) and seed.

        Raises:
            ValueError: a query is longer than the model can generate.
        """
        sounds: dict[int, np.ndarray] = {}
        for duration_s in {query.duration_s for query in queries}:
            places = [n for n, query in enumerate(queries) if query.duration_s == duration_s]
            made = self.pipe.generate(
                [self.pipe.encode(queries[n].prompt, queries[n].image) for n in places],
                duration_s=duration_s,
                generators=[torch.Generator().manual_seed(seeds[n]) for n in places],
            )
            sounds.update(zip(places, made.audios, strict=True))
        return [sounds[n] for n in range(len(queries))]
