"""The networks of a recipe's vocoder."""

from __future__ import annotations

from models.audio.istft_vocoder import IstftVocoder
from models.audio.mel import MelSpectrogram
from models.audio.vocoder import Vocoder, build_vocoder, load_vocoder
from training.data.clips import ClipSet
from training.recipe import Recipe, VocoderRecipe
from training.state import load_state, load_weights

# The part of a saved state that is served: an iSTFT vocoder has averaged weights (EMA).
SERVED = {"hifigan": "vocoder", "istft": "average"}


def build_network(v: VocoderRecipe, mel: MelSpectrogram) -> Vocoder:
    """Return an untrained vocoder of the recipe's architecture and size."""
    if v.architecture == "hifigan":
        return build_vocoder(mel, upsample_initial_channel=v.upsample_initial_channel)
    c = mel.config
    return IstftVocoder(
        c.n_mels, c.sample_rate, c.hop_length, n_fft=4 * c.hop_length, dim=v.dim, depth=v.depth
    )


def untrained_network(recipe: Recipe, clips: ClipSet, mel: MelSpectrogram) -> Vocoder:
    """Return an untrained vocoder that standardises its input with the statistics of the training clips."""
    vocoder = build_network(recipe.vocoder, mel)
    vocoder.mean.copy_(clips.mel_mean)
    vocoder.scale.copy_(clips.mel_std)
    return vocoder


def present_vocoder(recipe: Recipe, mel: MelSpectrogram) -> Vocoder | None:
    """Return the recipe's vocoder as it is, trained or in training; None if it has no state yet.

    Raises:
        ValueError: its state is damaged or of another shape than the recipe's.
    """
    if not recipe.vocoder_is_trained:
        return None
    state = load_state(recipe.vocoder_folder / "state.pt")
    if state is None:
        return load_vocoder(recipe.vocoder_folder)
    vocoder = build_network(recipe.vocoder, mel)
    load_weights("vocoder", vocoder, state["weights"][SERVED[recipe.vocoder.architecture]])
    return vocoder.eval()
