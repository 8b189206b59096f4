"""Texts for pictures that nobody described: what a generic list of phrases has nearest to a frame (after Lafite2, Zhou et al. 2022, retrieving in place of writing).

The denoiser then sees embeddings of texts in training, from videos alone, and not one word that belongs to a clip.
"""

from __future__ import annotations

from pathlib import Path

import torch

from models.encoders import JointEncoder, load_encoder
from models.phrases import PhraseBank
from training.data import Clips, ClipSet

FILE = "phrases.safetensors"


def pseudo_texts(encoder: JointEncoder, embeds: torch.Tensor, k: int) -> torch.Tensor:
    """Return embeddings (N, k, D) of the k phrases nearest to each of N frames (N, D), which are centred by their own mean."""
    return PhraseBank.build(encoder, embeds.float().mean(0)).texts(embeds, k)


def load_bank(folder: Path, clips: ClipSet) -> PhraseBank:
    """Return the bank for a prepared folder, kept there as `phrases.safetensors`.

    `PhraseBank.draw` is one product of a frame with 1,000 names, so nothing needs to be stored for each clip.
    """
    return PhraseBank.kept(folder / FILE, lambda: load_encoder(folder / "encoder"), clips.image_mean)


def of_clips(clips: Clips, bank: PhraseBank, k: int) -> list[torch.Tensor]:
    """Return for each clip the numbers (K, k) of the names nearest to its K frames, nearest first."""
    return [bank.similar(clips.embeds(i), k)[1] for i in range(len(clips))]
