"""Networks, audio maths, sampler and pipeline. Knows nothing of the service, the queue or training.

pipeline.py    ClipSynthPipeline: a prompt or an image in, waveforms out.
sampler.py     One denoising step for rows of different lengths and settings.
schedule.py    Times of the sampler's steps.
retriever.py   Play the nearest training clips instead of generating.
bundle.py      clipsynth.json: name, limits, defaults and hashes of a bundle.
parts.py       The module path that saved bundles record.
part.py        Base of parts without weights.
specvqgan.py   The module path that saved SpecVQGAN pipelines record.

The exported names load on first use, so reading a manifest does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.bundle import BundleError, Manifest
    from models.conditioning.prompts import Prompt
    from models.pipeline import ClipSynthOutput, ClipSynthPipeline

__all__ = ["BundleError", "ClipSynthOutput", "ClipSynthPipeline", "Manifest", "Prompt"]

_MODULES = {
    "BundleError": "bundle",
    "ClipSynthOutput": "pipeline",
    "ClipSynthPipeline": "pipeline",
    "Manifest": "bundle",
    "Prompt": "conditioning.prompts",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
