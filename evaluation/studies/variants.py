"""One bundle with other settings, as systems of their own: nothing is trained, and nothing that it is made of is copied but the condition encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evaluation.audio import fingerprint
from models.networks.condition_encoder import ConditionEncoder
from models.pipeline import ClipSynthPipeline


def with_condition_encoder(pipe: ClipSynthPipeline, encoder: ConditionEncoder) -> ClipSynthPipeline:
    """Return a pipeline of the same parts but for the condition encoder; its manifest's version is another where that differs."""
    own = pipe.condition_encoder
    other = ClipSynthPipeline(pipe.encoder, encoder, pipe.denoiser, pipe.vocoder, pipe.mel)
    other.index, other.manifest = pipe.index, pipe.manifest
    if _mark(own) != _mark(encoder):
        other.manifest = replace(
            pipe.manifest, sha256=pipe.manifest.sha256 | {"condition_encoder": _mark(encoder)}
        )
    return other


def changed(pipe: ClipSynthPipeline, settings: Mapping[str, Any]) -> ClipSynthPipeline:
    """Return the pipeline with other settings of its condition encoder.

    Raises:
        ValueError: a setting that it does not have.
    """
    known = pipe.condition_encoder.config
    for name in settings:
        if name not in known or name.startswith("_"):
            raise ValueError(f"the condition encoder has no setting {name!r}")
    return with_condition_encoder(pipe, pipe.condition_encoder.changed(**settings))


def with_manifest(pipe: ClipSynthPipeline, **changes: Any) -> ClipSynthPipeline:
    """Return the pipeline with other values in its manifest, such as when there is guidance, or where the steps lie."""
    other = with_condition_encoder(pipe, pipe.condition_encoder)
    other.manifest = replace(pipe.manifest, **changes)
    return other


def _mark(encoder: ConditionEncoder) -> str:
    """Return a fingerprint of settings and weights."""
    weights = hashlib.sha256(
        b"".join(w.detach().cpu().float().numpy().tobytes() for w in encoder.state_dict().values())
    )
    settings = {name: value for name, value in encoder.config.items() if not name.startswith("_")}
    return fingerprint(settings, weights.hexdigest())
