"""Networks, audio maths, sampler and pipeline. Knows nothing of the service, the queue or the training.

The names below load on first use: who reads a bundle's manifest need not wait for torch.
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
