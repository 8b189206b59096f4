"""Run `clipsynth train` for the baseline: codec, transformer, then a folder for `SpecVqganPipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch

from models.baselines.specvqgan import SpecVqganPipeline
from models.pipeline import ClipSynthPipeline
from training.data.clips import open_clips
from training.loop import build_accelerator
from training.recipe import SpecVqganRecipe
from training.specvqgan.codec import train_vqgan
from training.specvqgan.transformer import train_transformer
from training.state import claim_stage, steps_taken

SpecVqganStage = Literal["all", "vqgan", "transformer", "export"]


def train_specvqgan(recipe: SpecVqganRecipe, *, stage: str = "all", out: Path | None = None) -> Path | None:
    """Run one stage, or all; return the folder of the trained pipeline if one was written.

    Raises:
        ValueError: no such stage, no prepared folder, a bundle or state that does not fit, a stage that
            another needs has not been trained, or several processes.
        Terminated: SIGTERM ended a stage.
    """
    if stage not in get_args(SpecVqganStage):
        raise ValueError(f"there is no stage {stage!r}; choose one of {', '.join(get_args(SpecVqganStage))}")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    clips = open_clips(recipe)
    accelerator = build_accelerator()
    if accelerator.num_processes > 1:
        raise ValueError(f"SpecVQGAN is trained by one process, got {accelerator.num_processes}")
    for needed in {"transformer": ("vqgan",), "export": ("vqgan", "transformer")}.get(stage, ()):
        if not _steps_done(recipe, needed):
            raise ValueError(
                f"{recipe.run} has no trained {needed} yet; run: clipsynth train … --stage {needed}"
            )

    for name in ("vqgan", "transformer"):
        if stage in (name, "all") and _steps_done(recipe, name) < getattr(recipe, name).steps:
            claim_stage(Path(recipe.run) / name, recipe, clips.hashes)

    done = _without_training(recipe)
    codec = train_vqgan(recipe if stage in ("vqgan", "all") else done, clips, accelerator)
    if stage == "vqgan":
        return None
    parts = train_transformer(recipe if stage != "export" else done, clips, codec, accelerator)
    if stage == "transformer":
        return None

    folder = out or Path(recipe.run) / "pipeline"
    bundle = ClipSynthPipeline.from_pretrained(recipe.bundle)
    trained = (bundle.encoder, parts[0], codec, parts[1], bundle.vocoder, bundle.mel)
    SpecVqganPipeline(*trained, output_gain=clips.output_gain).save_pretrained(folder)
    return folder


def _steps_done(recipe: SpecVqganRecipe, stage: str) -> int:
    return steps_taken(Path(recipe.run) / stage / "state.pt")


def _without_training(recipe: SpecVqganRecipe) -> SpecVqganRecipe:
    stages = ("vqgan", "transformer")
    return recipe.model_copy(update={s: getattr(recipe, s).model_copy(update={"steps": 0}) for s in stages})
