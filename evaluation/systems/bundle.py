"""Our bundles as systems, and their vocoder on the mels of real clips (the paper's HiFi-GAN row)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from evaluation.audio import fingerprint, fit
from evaluation.clips import read_sound
from evaluation.interfaces import SAMPLE_RATE, Query, QueryKind, Sources, split_options
from models.audio.level import level
from models.audio.vocoder import vocode
from models.conditioning.prompts import Composition, Prompt, as_set
from models.pipeline import ClipSynthPipeline
from models.sampler import advance


def load_pipeline(folder: str) -> ClipSynthPipeline:
    """Load a bundle.

    Raises:
        ValueError: it cannot be used (`BundleError`), or has another sample rate.
    """
    pipe = ClipSynthPipeline.from_pretrained(folder)
    rate = pipe.manifest.sample_rate
    if rate != SAMPLE_RATE:
        raise ValueError(f"{folder}: {rate} Hz, but systems are compared at {SAMPLE_RATE} Hz")
    return pipe


class Bundle:
    """A bundle; the queries of one call share the network's batch.

    Options: `learned_from` (image, text, image+text), `steps`, `guidance`.
    """

    kinds: frozenset[QueryKind] = frozenset({"text", "image"})
    deterministic, generative = False, True
    composition: Composition = "set"

    def __init__(
        self,
        name: str,
        pipe: ClipSynthPipeline,
        *,
        learned_from: str = "image",
        steps: int | None = None,
        guidance: float | None = None,
        attributes: Mapping[str, float] | None = None,
    ) -> None:
        self.name, self.pipe, self.training_query = name, pipe, learned_from
        self.unlabeled = learned_from == "image"
        self.steps = pipe.manifest.num_inference_steps if steps is None else steps
        self.guidance = pipe.manifest.guidance_scale if guidance is None else guidance
        self.attributes = dict(attributes or {})
        optional = [self.attributes] if self.attributes else []
        self.version = fingerprint(pipe.manifest.version, self.steps, self.guidance, *optional)

    @classmethod
    def load(cls, name: str, argument: str, sources: Sources) -> Bundle:
        """Build from "FOLDER" or "FOLDER?learned_from=text&steps=12&guidance=8"."""
        del sources
        types = {"learned_from": str, "steps": int, "guidance": float}
        folder, options = split_options(argument, types)
        return cls(name, load_pipeline(folder), **options)

    def prompts(self, query: Query) -> list[Prompt]:
        """Return the set of texts and images that a query requests."""
        return as_set(query.prompt, query.image, None)

    @torch.inference_mode()
    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        rows = [
            self.pipe.prepare_rows(
                self.prompts(query),
                composition=self.composition,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                duration_s=query.duration_s,
                generators=[torch.Generator().manual_seed(seed)],
                attributes=self.attributes,
            )[0]
            for query, seed in zip(queries, seeds, strict=True)
        ]
        while rows and not rows[0].done:
            advance(rows, self.pipe.denoiser)
        return [self.pipe.decode([row], q.duration_s)[0] for row, q in zip(rows, queries, strict=True)]


class Reconstruction:
    """The vocoder of a bundle on the mels of the queried clips: shows the loss by the vocoder alone."""

    kinds: frozenset[QueryKind] = frozenset({"clip"})
    deterministic, generative, unlabeled, training_query = True, False, False, "–"

    def __init__(self, name: str, pipe: ClipSynthPipeline, clips: Path) -> None:
        self.name, self.pipe, self.clips = name, pipe, clips
        files = pipe.manifest.sha256.items()
        self.version = fingerprint(
            "reconstruction", {f: h for f, h in files if f.startswith(("vocoder/", "mel/"))}
        )

    @classmethod
    def load(cls, name: str, argument: str, sources: Sources) -> Reconstruction:
        """Build from a bundle's FOLDER."""
        folder, _ = split_options(argument, {})
        return cls(name, load_pipeline(folder), sources.clips)

    @torch.inference_mode()
    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        del seeds
        return [self._reconstruct(query, read_sound(self.clips / query.clip)) for query in queries]

    def _reconstruct(self, query: Query, recording: np.ndarray) -> np.ndarray:
        levelled, gain = level(fit(recording, query.duration_s))
        log_mel = self.pipe.mel(torch.from_numpy(levelled)[None])
        sound = vocode(self.pipe.vocoder, log_mel, self.pipe.mel)[0].numpy()
        return fit(np.clip(sound / gain, -1, 1).astype(np.float32), query.duration_s)
