"""Run or resume the stages of `clipsynth train`: vocoder, denoiser, distil, finetune, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

import torch

from models.audio.mel import MelSpectrogram
from models.audio.vocoder import load_vocoder
from models.networks.condition_encoder import ConditionEncoder
from models.networks.denoiser import Denoiser
from models.pipeline import ClipSynthPipeline
from training.data.clips import ClipSet, open_clips
from training.denoiser.adapt import adapt_to_encoder
from training.denoiser.guidance_distillation import distil
from training.denoiser.train import train_denoiser
from training.export import export
from training.loop import build_accelerator
from training.progress import ProgressView, StageProgress
from training.recipe import Recipe, SpecVqganRecipe
from training.specvqgan.train import train_specvqgan
from training.state import claim_stage, fork, steps_taken
from training.vocoder.generated_mels import GeneratedClips
from training.vocoder.train import train_vocoder

TIMED_STEPS = 6
Stage = Literal["all", "vocoder", "denoiser", "distil", "finetune", "export"]


def train(
    recipe: Recipe | SpecVqganRecipe,
    *,
    stage: str = "all",
    init: Path | None = None,
    out: Path | None = None,
    attribution: Path | None = None,
    results: Path | None = None,
    fork_to: Path | None = None,
) -> Path | None:
    """Run one stage of a recipe, or all; return the bundle's folder if this process wrote one.

    "distil" trains the denoiser for guidance in one pass; its result replaces the denoiser. "finetune" trains
    the vocoder on mels of the denoiser. "export" writes a bundle of the trained parts.

    Args:
        init: bundle whose weights a stage without a state starts from.
        out: folder of the bundle; default: in the run's folder.
        fork_to: folder of a new run that starts with the states of `recipe.run`.
        attribution, results: sources and figures for the model card; see `export`.

    Raises:
        ValueError: no such stage, no prepared folder, `init` or a saved state has another shape than the
            recipe, or a stage that another needs has not been trained.
        Terminated: SIGTERM ended a stage; the same call continues.
    """
    if isinstance(recipe, SpecVqganRecipe):
        if init or attribution or results or fork_to:
            raise ValueError("recipes of SpecVQGAN have no --init, --attribution, --results or --fork")
        return train_specvqgan(recipe, stage=stage, out=out)
    if stage not in get_args(Stage):
        raise ValueError(f"there is no stage {stage!r}; choose one of {', '.join(get_args(Stage))}")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    start = ClipSynthPipeline.from_pretrained(init) if init else None
    mel = MelSpectrogram()
    clips = open_clips(recipe)
    accelerator = build_accelerator()
    if accelerator.is_main_process:
        clips.train.verify()
    if fork_to:
        if accelerator.is_main_process:
            fork(Path(recipe.run), fork_to, recipe, clips.hashes)
        accelerator.wait_for_everyone()
        recipe = recipe.model_copy(update={"run": str(fork_to)})
    view = ProgressView(_planned(recipe, stage), show=accelerator.is_main_process)

    for name, planned in view.stages.items():
        if planned.done < planned.total:
            claim_stage(_folder(recipe, name), recipe, clips.hashes, write=accelerator.is_main_process)

    def vocoder(recipe: Recipe, generated: GeneratedClips | None = None):
        if (recipe.vocoder_folder / "config.json").is_file():
            return load_vocoder(recipe.vocoder_folder)
        begin = start.vocoder if start else None
        return train_vocoder(recipe, clips, mel, accelerator, begin, generated, view)

    def denoiser(recipe: Recipe, until: int | None = None):
        parts = _parts(start, clips) if start else None
        return train_denoiser(recipe, clips, accelerator, parts, view=view, until=until)

    def network(recipe: Recipe, *, begin: bool = False):
        """Return the denoiser's parts, distilled if that stage has a state or shall `begin`."""
        parts = denoiser(_without_training(recipe))
        started = begin or _has(recipe, "distil")
        return distil(recipe, clips, parts, accelerator, view) if recipe.distil and started else parts

    own_vocoder = recipe.vocoder_run is None
    with view.shown():
        if stage == "all" and all(_waiting(view, name) for name in ("vocoder", "denoiser")):
            # A few steps of the denoiser before the vocoder, so that its time is known from the start.
            denoiser(recipe, until=view.stages["denoiser"].done + TIMED_STEPS)
        if stage in ("vocoder", "all") and own_vocoder:
            vocoder(recipe)
        if stage in ("denoiser", "all"):
            denoiser(recipe)
        if stage == "distil" and recipe.distil is None:
            raise ValueError("the recipe has no section distil")
        if stage in ("distil", "all") and recipe.distil:
            if start is None:
                _require(recipe, "denoiser")
            network(recipe, begin=True)
        done = _without_training(recipe)
        if stage in ("finetune", "all") and own_vocoder and recipe.vocoder.finetune_steps:
            _require(recipe, "vocoder", "denoiser")
            limit = recipe.vocoder.finetune_clips
            condition_encoder, trained = (part.to(accelerator.device) for part in network(done))
            made = GeneratedClips(clips.train, condition_encoder, trained, limit=limit, seed=recipe.seed)
            vocoder(recipe, made)
    if stage not in ("export", "all"):
        return None
    _require(recipe, "vocoder", "denoiser")
    folder = out or Path(recipe.run) / "bundle"
    if accelerator.is_main_process:
        parts = (*network(done), vocoder(done), mel)
        export(recipe, clips, parts, folder, attribution=attribution, results=results)
    accelerator.wait_for_everyone()
    return folder if accelerator.is_main_process else None


def _parts(start: ClipSynthPipeline, clips: ClipSet) -> tuple[ConditionEncoder, Denoiser]:
    """Return the bundle's parts, adapted if the clips were prepared with another encoder."""
    parts = start.condition_encoder, start.denoiser
    saved = json.loads((clips.folder / "encoder" / "config.json").read_text())
    own = {name: value for name, value in start.encoder.config.items() if not name.startswith("_")}
    if all(saved.get(name) == value for name, value in own.items()):
        return parts
    return adapt_to_encoder(*parts, start.index, clips)


def _planned(recipe: Recipe, stage: str) -> dict[str, StageProgress]:
    """Return the stages that train in this call, in order, with the steps taken."""
    steps = {"vocoder": recipe.vocoder.steps, "denoiser": recipe.denoiser.steps}
    if recipe.distil:
        steps["distil"] = recipe.distil.steps
    if recipe.vocoder.finetune_steps:
        steps["finetune"] = recipe.vocoder.steps + recipe.vocoder.finetune_steps
    if recipe.vocoder_run:
        steps = {name: n for name, n in steps.items() if name not in ("vocoder", "finetune")}
    planned = {}
    for name, total in steps.items():
        if stage in (name, "all"):
            taken = steps_taken(_folder(recipe, name) / "state.pt")
            planned[name] = StageProgress(min(taken, total), total)
    # Until they run: two passes of the teacher beside those of the student, and the vocoder's own steps.
    for name, kin, factor in (("distil", "denoiser", 1.7), ("finetune", "vocoder", 1.0)):
        if name in planned and kin in planned:
            planned[name].like = planned[kin], factor
    return planned


def _waiting(view: ProgressView, name: str) -> bool:
    """Return whether a stage has many steps to take."""
    stage = view.stages.get(name)
    return stage is not None and stage.total - stage.done > 10 * TIMED_STEPS


def _require(recipe: Recipe, *stages: str) -> None:
    """Raise ValueError unless all stages have a state."""
    for stage in stages:
        if not _has(recipe, stage):
            run = _folder(recipe, stage).parent
            raise ValueError(f"{run} has no trained {stage} yet; run: clipsynth train … --stage {stage}")


def _folder(recipe: Recipe, stage: str) -> Path:
    return recipe.vocoder_folder if stage in ("vocoder", "finetune") else Path(recipe.run) / stage


def _has(recipe: Recipe, stage: str) -> bool:
    """Return whether a stage has a state, finished or not."""
    if stage == "vocoder":
        return recipe.vocoder_is_trained
    return (_folder(recipe, stage) / "state.pt").is_file()


def _without_training(recipe: Recipe) -> Recipe:
    sections = {
        "vocoder": recipe.vocoder.model_copy(update={"steps": 0, "finetune_steps": 0}),
        "denoiser": recipe.denoiser.model_copy(update={"steps": 0}),
        "distil": recipe.distil and recipe.distil.model_copy(update={"steps": 0}),
    }
    return recipe.model_copy(update=sections)
