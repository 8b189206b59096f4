"""Networks, audio maths, sampler and pipeline. Knows nothing of the service, the queue or the training."""

from models.manifest import BundleError, Manifest
from models.pipeline import ClipSynthOutput, ClipSynthPipeline

__all__ = ["BundleError", "ClipSynthOutput", "ClipSynthPipeline", "Manifest"]
