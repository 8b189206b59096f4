"""The module path that bundles record for our parts in `model_index.json`. Frozen: a rename here breaks every saved bundle."""

from diffusers import ModelMixin  # diffusers looks the base class up in this very module

from models.condition_encoder import ConditionEncoder
from models.denoiser import Denoiser
from models.encoders import OpenClipEncoder, PackagedEncoder
from models.mel import MelSpectrogram

__all__ = [
    "ConditionEncoder",
    "Denoiser",
    "MelSpectrogram",
    "ModelMixin",
    "OpenClipEncoder",
    "PackagedEncoder",
]
