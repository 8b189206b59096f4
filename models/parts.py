"""The module path that bundles record for our parts in `model_index.json`. Frozen: a rename here breaks every saved bundle."""

from diffusers import ModelMixin  # diffusers looks the base class up in this very module

from models.audio.mel import MelSpectrogram
from models.networks.condition_encoder import ConditionEncoder
from models.networks.denoiser import Denoiser
from models.networks.open_clip import OpenClipEncoder
from models.networks.packaged import PackagedEncoder

__all__ = [
    "ConditionEncoder",
    "Denoiser",
    "MelSpectrogram",
    "ModelMixin",
    "OpenClipEncoder",
    "PackagedEncoder",
]
