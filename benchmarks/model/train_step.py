"""Measure how much of the machine a denoiser's training step uses.

    python -m benchmarks.model.train_step recipes/demo.yaml [--steps 40] [--set denoiser.batch_size=16]
    python -m benchmarks.model.train_step recipes/demo.yaml --against s3://bucket/clips --set cache=FOLDER

Prints FLOP/s relative to the machine's matrix products, and the share of time spent waiting for data; with
`--against`, steps/s with the same clips elsewhere after the first epoch, over steps/s with the recipe's.
"""

from __future__ import annotations

import time
from pathlib import Path
from timeit import timeit
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.data.batches import Batch, Batches, BatchMaker
from training.data.clips import ClipSet, open_clips
from training.denoiser.flow_matching import FlowMatching, build_condition_encoder, build_denoiser
from training.denoiser.train import attention, build_optimizer
from training.loop import autocast, one_ahead
from training.recipe import Recipe, load_recipe


def gemm_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 8) -> float:
    """Return FLOP/s of square matrix products."""
    a, b = torch.randn(2, size, size).to(dtype)
    a @ b
    return repeats * 2 * size**3 / timeit(lambda: a @ b, number=repeats)


class Trainer:
    """Takes training steps of a recipe, without logs and states."""

    def __init__(self, recipe: Recipe, clips: ClipSet) -> None:
        self.recipe, self.device = recipe, torch.device("cpu")
        self.model = FlowMatching(build_condition_encoder(recipe, clips), build_denoiser(recipe, clips))
        self.model.train()
        self.optimizer = build_optimizer(recipe, self.model)
        decay = recipe.denoiser.ema_decay
        self.ema = EMAModel(self.model.parameters(), decay=decay, use_ema_warmup=True, power=0.75)

    def forward_backward(self, batch: Batch) -> None:
        with autocast(self.recipe, self.device), attention(self.device):
            loss = self.model(batch)
        loss.backward()

    def step(self, batch: Batch) -> None:
        self.forward_backward(batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.ema.step(self.model.parameters())


def compare(recipe: Recipe, other: str, rounds: int, block: int = 5) -> None:
    """Print steps/s with the clips of `other` over those with the recipe's, in turns of `block` steps."""
    recipes = recipe, recipe.model_copy(update={"clips": other})
    opened = [open_clips(each) for each in recipes]
    trainer = Trainer(recipe, opened[0])
    places = []
    for each, clips in zip(recipes, opened, strict=True):
        batches = Batches(clips.train, each)
        epoch, started = -(-len(clips.train) // batches.size), time.perf_counter()
        for n in range(epoch):
            batches[n]
        print(f"{each.clips}: draws of the first epoch {time.perf_counter() - started:.1f} s, {epoch} steps")
        ahead = one_ahead(batches.__getitem__, range(epoch, epoch + (rounds + 1) * block))
        places.append((ahead, BatchMaker(batches, trainer.device)))
    spent = np.zeros((rounds + 1, 2, 2))
    for turn in range(rounds + 1):
        for n in (0, 1) if turn % 2 else (1, 0):
            ahead, make = places[n]
            started = time.perf_counter(), time.process_time()
            for _ in range(block):
                trainer.step(make(next(ahead)))
            spent[turn, n] = np.subtract((time.perf_counter(), time.process_time()), started)
    spent = spent[1:]
    wall, cpu = spent.sum(0).T
    steps = rounds * block
    print(f"{steps} steps each: {np.round(steps / wall, 2)} steps/s, {np.round(cpu / steps, 3)} CPU s a step")
    ratios = spent[:, 0, 0] / spent[:, 1, 0]
    print(f"steps/s over the recipe's: {wall[0] / wall[1]:.3f} (median of turns {np.median(ratios):.3f})")
    print(f"CPU seconds over the recipe's: {cpu[1] / cpu[0]:.3f}")


def main(
    recipe_file: Path,
    steps: int = 40,
    overrides: Annotated[list[str], typer.Option("--set")] = (),
    against: Annotated[str | None, typer.Option(help="The same clips, elsewhere.")] = None,
) -> None:
    """Time training steps of a recipe."""
    recipe = load_recipe(recipe_file, list(overrides))
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    if against:
        compare(recipe, against, steps)
        return
    clips = open_clips(recipe)
    trainer = Trainer(recipe, clips)
    batches = Batches(clips.train, recipe)
    make = BatchMaker(batches, trainer.device)
    for n in range(3):
        trainer.step(make(batches[n]))
    flops, spent = 0, np.zeros(3)
    sgemm, bf16 = [], []
    arriving = one_ahead(batches.__getitem__, range(3, 3 + steps))
    for n in range(3, 3 + steps):
        if n % 10 == 3:
            sgemm.append(gemm_rate(torch.float32))
            bf16.append(gemm_rate(torch.bfloat16))
        started = time.perf_counter()
        drawn, arrived = next(arriving), time.perf_counter()
        batch, made = make(drawn), time.perf_counter()
        trainer.step(batch)
        spent += np.diff([started, arrived, made, time.perf_counter()])
        with FlopCounterMode(display=False) as counter:
            trainer.forward_backward(batch)
        trainer.model.zero_grad(set_to_none=True)
        flops += counter.get_total_flops()
    busy, rate, gflop = spent[2], flops / spent[2], flops / steps / 1e9
    print(f"threads {torch.get_num_threads()}, batch {recipe.denoiser.batch_size}, {steps} steps")
    print(f"step {busy / steps:.3f} s, {gflop:.1f} GFLOP, {rate / 1e9:.0f} GFLOP/s")
    for name, peak in (("fp32", np.mean(sgemm)), ("bf16", np.mean(bf16))):
        print(f"matrix product in {name}: {peak / 1e9:.0f} GFLOP/s, ratio {rate / peak:.2f}")
    share = 100 * spent / spent.sum()
    print(f"of the time: waiting for data {share[0]:.2f} %, making rows {share[1]:.2f} %")


if __name__ == "__main__":
    typer.run(main)
