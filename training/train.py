"""`clipsynth train`: vocoder, then denoiser, then the bundle. Each stage resumes where it was.

Run: clipsynth train recipes/demo.yaml [--set denoiser.steps=10] [--stage vocoder|denoiser|export|all]
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from models.encoders import load_encoder
from models.manifest import Manifest
from models.mel import MelSpectrogram
from models.pipeline import ClipSynthPipeline
from training.data import load_clips
from training.recipe import Recipe
from training.train_denoiser import train_denoiser
from training.train_vocoder import train_vocoder

Stage = Literal["all", "vocoder", "denoiser", "export"]


def train(recipe: Recipe, *, stage: Stage = "all", init: Path | None = None) -> Path | None:
    """Run the stages of a recipe; return the bundle's folder where one was made.

    "export" makes a bundle of what is there: both stages with the steps they have.

    Args:
        init: a bundle whose weights a stage starts from where it has no state of its own.

    Raises:
        ValueError: `init` is not of the recipe's shape, or the prepared folder is missing or not one.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    start = ClipSynthPipeline.from_pretrained(init) if init else None
    mel = MelSpectrogram()
    clips = load_clips(Path(recipe.clips))
    first_vocoder = start.vocoder if start else None
    first_denoiser = (start.condition_encoder, start.denoiser) if start else None
    if stage == "vocoder":
        train_vocoder(recipe, clips, mel, first_vocoder)
        return None
    if stage == "denoiser":
        train_denoiser(recipe, clips, first_denoiser)
        return None
    if stage == "export":
        recipe = _without_training(recipe)
    vocoder = train_vocoder(recipe, clips, mel, first_vocoder)
    condition_encoder, denoiser = train_denoiser(recipe, clips, first_denoiser)
    encoder = load_encoder(Path(recipe.clips) / "encoder")
    pipe = ClipSynthPipeline(encoder, condition_encoder, denoiser, vocoder, mel)
    pipe.manifest = Manifest(
        name=recipe.name,
        min_duration_s=0.5,
        max_duration_s=clips.max_duration_s,
        output_gain=round(clips.output_gain, 4),
    )
    for part in (condition_encoder, denoiser, vocoder):
        part.half()
    folder = Path(recipe.run) / "bundle"
    pipe.save_pretrained(folder)
    return folder


def _without_training(recipe: Recipe) -> Recipe:
    """Return the recipe with no steps to take.

    Raises:
        ValueError: a stage has not saved anything yet.
    """
    for stage in ("vocoder", "denoiser"):
        if not (Path(recipe.run) / stage / "state.pt").is_file():
            raise ValueError(
                f"{recipe.run} has no trained {stage} yet; run: clipsynth train … --stage {stage}"
            )
    still = {
        "vocoder": recipe.vocoder.model_copy(update={"steps": 0}),
        "denoiser": recipe.denoiser.model_copy(update={"steps": 0}),
    }
    return recipe.model_copy(update=still)
