"""Measure how much of the machine a denoiser's training step uses.

    python -m benchmarks.model.train_step recipes/demo.yaml [--steps 40] [--set denoiser.batch_size=16]

Prints FLOP/s relative to the machine's matrix products, and the share of time spent waiting for data.
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
from training.data.clips import open_clips
from training.denoiser.flow_matching import FlowMatching, build_condition_encoder, build_denoiser
from training.denoiser.train import attention, build_optimizers
from training.loop import autocast, one_ahead
from training.recipe import load_recipe


def gemm_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 8) -> float:
    """Return FLOP/s of square matrix products."""
    a, b = torch.randn(2, size, size).to(dtype)
    a @ b
    return repeats * 2 * size**3 / timeit(lambda: a @ b, number=repeats)


def main(
    recipe_file: Path, steps: int = 40, overrides: Annotated[list[str], typer.Option("--set")] = ()
) -> None:
    """Time training steps of a recipe."""
    recipe = load_recipe(recipe_file, list(overrides))
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    clips = open_clips(recipe)
    model = FlowMatching(build_condition_encoder(recipe, clips), build_denoiser(recipe, clips)).train()
    (optimizer, *_) = build_optimizers(recipe, model)
    ema = EMAModel(model.parameters(), decay=recipe.denoiser.ema_decay, use_ema_warmup=True, power=0.75)
    batches = Batches(clips.train, recipe)
    device = torch.device("cpu")

    def forward_backward(batch: Batch) -> None:
        with autocast(recipe, device), attention(device):
            loss = model(batch)
        loss.backward()

    def step(batch: Batch) -> None:
        forward_backward(batch)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        ema.step(model.parameters())

    make = BatchMaker(batches, device)
    for n in range(3):
        step(make(batches[n]))
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
        step(batch)
        spent += np.diff([started, arrived, made, time.perf_counter()])
        with FlopCounterMode(display=False) as counter:
            forward_backward(batch)
        model.zero_grad(set_to_none=True)
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
