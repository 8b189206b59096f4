"""Texts for images that nobody described: what a generic list of phrases has nearest to a frame (after Lafite2, Zhou et al. 2022, retrieving in place of writing).

The denoiser then sees embeddings of texts in training, from videos alone, and not one word that belongs to a clip.
"""

from __future__ import annotations

from pathlib import Path

from models.conditioning.phrase_bank import PhraseBank
from models.networks.load_encoder import load_encoder
from training.data.clips import ClipSet

FILE = "phrases.safetensors"


def load_bank(folder: Path, clips: ClipSet) -> PhraseBank:
    """Return the bank for a prepared folder, kept there as `phrases.safetensors`.

    `PhraseBank.draw` is one product of a frame with 1,000 names, so nothing needs to be stored for each clip.
    """
    return PhraseBank.kept(folder / FILE, lambda: load_encoder(folder / "encoder"), clips.image_mean)
