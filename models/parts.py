"""The module path that bundles record for our parts. Frozen: a rename here breaks every saved bundle."""

# diffusers looks the base class up in this module.
from diffusers import ModelMixin

from models.audio.istft_vocoder import IstftVocoder
from models.audio.mel import MelSpectrogram
from models.networks.condition_encoder import ConditionEncoder
from models.networks.denoiser import Denoiser
from models.networks.multilingual import MultilingualEncoder
from models.networks.open_clip import OpenClipEncoder
from models.networks.packaged import PackagedEncoder

__all__ = [
    "ConditionEncoder",
    "Denoiser",
    "IstftVocoder",
    "MelSpectrogram",
    "ModelMixin",
    "MultilingualEncoder",
    "OpenClipEncoder",
    "PackagedEncoder",
]
