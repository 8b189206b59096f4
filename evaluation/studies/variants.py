"""One bundle with other settings, as a system of its own. Nothing is trained; the weights are shared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evaluation.audio import fingerprint
from models.networks.condition_encoder import ConditionEncoder
from models.pipeline import ClipSynthPipeline


def with_condition_encoder(pipe: ClipSynthPipeline, encoder: ConditionEncoder) -> ClipSynthPipeline:
    """Return the pipeline with another condition encoder, and another version if the encoders differ."""
    own = pipe.condition_encoder
    other = ClipSynthPipeline(pipe.encoder, encoder, pipe.denoiser, pipe.vocoder, pipe.mel)
    other.index, other.manifest = pipe.index, pipe.manifest
    if _fingerprint(own) != _fingerprint(encoder):
        hashes = pipe.manifest.sha256 | {"condition_encoder": _fingerprint(encoder)}
        other.manifest = replace(pipe.manifest, sha256=hashes)
    return other


def with_settings(pipe: ClipSynthPipeline, settings: Mapping[str, Any]) -> ClipSynthPipeline:
    """Return the pipeline with other settings of its condition encoder.

    Raises:
        ValueError: the condition encoder has no such setting.
    """
    known = pipe.condition_encoder.config
    for name in settings:
        if name not in known or name.startswith("_"):
            raise ValueError(f"the condition encoder has no setting {name!r}")
    return with_condition_encoder(pipe, pipe.condition_encoder.changed(**settings))


def with_manifest(pipe: ClipSynthPipeline, **changes: Any) -> ClipSynthPipeline:
    """Return the pipeline with other values in its manifest, for example another guidance interval."""
    other = with_condition_encoder(pipe, pipe.condition_encoder)
    other.manifest = replace(pipe.manifest, **changes)
    return other


def _fingerprint(encoder: ConditionEncoder) -> str:
    weights = hashlib.sha256(
        b"".join(w.detach().cpu().float().numpy().tobytes() for w in encoder.state_dict().values())
    )
    settings = {name: value for name, value in encoder.config.items() if not name.startswith("_")}
    return fingerprint(settings, weights.hexdigest())
