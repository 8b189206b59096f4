"""Train the denoiser: rectified flow on mel tokens, given embeddings of a clip's frames or captions.

Several processes: accelerate launch --num_processes 2 -m clipsynth.cli train RECIPE (or torchrun).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.networks.condition_encoder import GUIDANCE, ConditionEncoder
from models.networks.denoiser import Denoiser
from training.data.attribute_labels import conditioning_scalars
from training.data.batches import Batch, Batches, BatchMaker
from training.data.clips import ClipSet
from training.denoiser.cuda_graphs import CudaGraphs, can_record_graphs
from training.denoiser.flow_matching import FlowMatching, build_condition_encoder, build_denoiser
from training.denoiser.validation import dev_batches, dev_loss, samples, spectrograms, vocode
from training.loop import Run, autocast, marked, prefetch
from training.prior import load_bank
from training.progress import ProgressView
from training.recipe import Recipe
from training.state import TrainingState, learning_rate, load_weights


def build_optimizer(recipe: Recipe, model: FlowMatching) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    decay, fused = recipe.denoiser.weight_decay, parameters[0].is_cuda or None
    return torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=decay, fused=fused)


def attention(device: torch.device) -> AbstractContextManager[None]:
    """Return the context for attention: on a CPU the fused kernel is slower than matrix products."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@dataclass(frozen=True)
class Objective:
    """The loss of a stage of the denoiser."""

    stage: str  # also the name of the stage's folder
    loss: nn.Module  # maps a `Batch` to the loss () and contains the trained parts
    dev: Callable[[Batch], torch.Tensor]  # loss of a dev batch; selects the best weights
    validation: Callable[[], list[Batch]]  # makes the dev batches


def train_denoiser(
    recipe: Recipe,
    clips: ClipSet,
    accelerator: Accelerator,
    init: tuple[ConditionEncoder, Denoiser] | None = None,
    *,
    view: ProgressView | None = None,
    until: int | None = None,
) -> tuple[ConditionEncoder, Denoiser]:
    """Train or resume; return the parts with the averaged weights (EMA) of the lowest dev loss.

    Args:
        init: trained parts to start from without a state to resume. They keep their scalars and the
            statistics of mels and embeddings, because the denoiser learned in that space. The bank comes from
            the new clips.
        view, until: see `train_parts`.

    Raises:
        ValueError: `init` has another shape than the recipe, or the clips lack the captions that it needs.
    """
    torch.manual_seed(recipe.seed)
    if init is not None:
        init = (_without_guidance(init[0]), init[1])
    scalars = (init and init[0].config.scalars) or conditioning_scalars(recipe, clips.train)
    condition_encoder = build_condition_encoder(recipe, clips, init[0].means if init else None, scalars)
    model = FlowMatching(condition_encoder, build_denoiser(recipe, clips))
    if init is not None:
        learned = {name: p.data for name, p in init[0].named_parameters()}
        own = model.condition_encoder
        load_weights("condition_encoder", own, own.state_dict() | learned)
        load_weights("denoiser", model.denoiser, init[1].state_dict())

    def validation() -> list[Batch]:
        return dev_batches(clips.dev, recipe, len(scalars))

    objective = Objective("denoiser", model, model, validation)
    return train_parts(recipe, clips, model, objective, accelerator, view, until)


def _without_guidance(encoder: ConditionEncoder) -> ConditionEncoder:
    """Return an encoder without the guidance scalar; without it a distilled denoiser is a plain one."""
    known = encoder.config.scalars
    if GUIDANCE not in known:
        return encoder
    return encoder.changed(scalars=[name for name in known if name != GUIDANCE], guidance_scales=[])


def train_parts(
    recipe: Recipe,
    clips: ClipSet,
    model: FlowMatching,
    objective: Objective,
    accelerator: Accelerator,
    view: ProgressView | None = None,
    until: int | None = None,
) -> tuple[ConditionEncoder, Denoiser]:
    """Train a stage with the settings of `recipe.denoiser` or resume it; return its parts.

    They have the averaged weights (EMA) of the lowest dev loss.

    Args:
        view: shows the progress of all stages.
        until: stop at this step, without an evaluation; a later call continues.

    Raises:
        ValueError: the saved state has another shape than `model`.
    """
    d = recipe.denoiser
    folder = Path(recipe.run) / objective.stage
    objective.loss.to(accelerator.device)
    optimizer = build_optimizer(recipe, model)
    ema = EMAModel(model.parameters(), decay=d.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    state = TrainingState(folder, {objective.stage: model}, [optimizer], ema=ema)
    state.resume()
    ema.to(accelerator.device)
    if state.step < d.steps and (d.patience is None or state.stale < d.patience):
        run = Run(objective.stage, folder, recipe, accelerator, view)
        _fit(clips, model, objective, state, run, until)
    state.load_best()
    model.cpu().eval()
    return model.condition_encoder, model.denoiser


def _fit(
    clips: ClipSet,
    model: FlowMatching,
    objective: Objective,
    state: TrainingState,
    run: Run[Recipe],
    until: int | None,
) -> None:
    """Train from `state.step` on, in place; stop at `until` if it is given."""
    recipe, accelerator = run.recipe, run.accelerator
    d, accumulate = recipe.denoiser, recipe.denoiser.gradient_accumulation_steps
    last = d.steps if until is None else min(until, d.steps)
    if d.compile:
        for part in objective.loss.modules():
            if isinstance(part, Denoiser):
                part.transformer.compile(dynamic=True)
    wrapped = accelerator.prepare_model(objective.loss)
    bank = load_bank(clips) if d.condition == "image" and d.pseudo_text else None
    # The first process computes what all read.
    with accelerator.main_process_first():
        batches = Batches(
            clips.train,
            recipe,
            bank,
            scalars=model.condition_encoder.config.scalars,
            keep=recipe.in_memory,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
    validation = objective.validation() if accelerator.is_main_process else []
    make = BatchMaker(batches, accelerator.device)
    recorded = None
    if can_record_graphs(recipe, accelerator):
        recorded = CudaGraphs(objective.loss, lambda: autocast(recipe, accelerator.device))
    model.train()
    numbers = range(state.step * accumulate, last * accumulate)
    upcoming = run.timed(prefetch(batches, numbers, recipe.workers))

    def step(n: int) -> torch.Tensor:
        state.set_learning_rate(learning_rate(d, n))
        total = torch.zeros((), device=accelerator.device)
        for micro in range(accumulate):
            batch = make(next(upcoming))
            if recorded is not None:
                total = recorded(batch)
                continue
            with (
                accelerator.no_sync(wrapped) if micro < accumulate - 1 else nullcontext(),
                autocast(recipe, accelerator.device),
                attention(accelerator.device),
            ):
                loss = wrapped(batch) / accumulate
            accelerator.backward(loss)
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        state.optimizers[0].step()
        model.zero_grad(set_to_none=True)
        if state.ema is not None:
            state.ema.step(model.parameters())
        return marked(total, norm)

    def clips_of(n: int) -> list[str]:
        return [clip for micro in range(accumulate) for clip in batches.describe(n * accumulate + micro)]

    # Draws in an evaluation must not change the next steps.
    @torch.random.fork_rng(devices=())
    def evaluate(n: int) -> bool:
        """Measure the averaged weights on dev clips and keep the best; return whether to continue."""
        with state.averaged():
            model.eval()
            loss = dev_loss(objective.dev, validation, accelerator.device)
            run.log("dev", n, loss)
            made = samples(model, validation[0], accelerator.device, recipe.requests)
            run.show(n, spectrograms(validation[0].mel.cpu(), made))
            if (sound := vocode(recipe, made)) is not None:
                run.play(n, sound)
            state.record(loss)
        model.train()
        return d.patience is None or state.stale < d.patience

    run.steps(
        state,
        last,
        step,
        total=d.steps,
        evaluate=evaluate if last == d.steps else None,
        evaluate_every=d.evaluate_every,
        clips_per_step=d.batch_size,
        clips_of=clips_of,
    )
