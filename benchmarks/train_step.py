"""How much of the machine a denoiser's training step uses: FLOP/s achieved over the machine's matrix product rate, and time spent waiting for data.

Run: python benchmarks/train_step.py recipes/demo.yaml [--steps 40] [--set denoiser.batch_size=16]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.data.batches import Batch, Batches, BatchMaker
from training.data.clips import load_clips
from training.denoiser.flow_matching import FlowMatching, build_condition_encoder, build_denoiser
from training.denoiser.train import attention, build_optimizers
from training.loop import autocast, one_ahead
from training.recipe import load_recipe


def gemm_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 8) -> float:
    """Return FLOP/s of square matrix products."""
    a, b = torch.randn(2, size, size).to(dtype)
    a @ b
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return repeats * 2 * size**3 / (time.perf_counter() - started)


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    clips = load_clips(Path(recipe.clips))
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
    flops, busy, making, waiting = 0, 0.0, 0.0, 0.0
    sgemm, bf16 = [], []
    arriving = one_ahead(batches.__getitem__, range(3, 3 + arguments.steps))
    for n in range(3, 3 + arguments.steps):
        if n % 10 == 3:
            sgemm.append(gemm_rate(torch.float32))
            bf16.append(gemm_rate(torch.bfloat16))
        started = time.perf_counter()
        drawn = next(arriving)
        waiting += time.perf_counter() - started
        started = time.perf_counter()
        batch = make(drawn)
        making += time.perf_counter() - started
        busy += timed(lambda batch=batch: step(batch))
        with FlopCounterMode(display=False) as counter:
            forward_backward(batch)
        model.zero_grad(set_to_none=True)
        flops += counter.get_total_flops()
    rate, fp32, half = flops / busy, sum(sgemm) / len(sgemm), sum(bf16) / len(bf16)
    print(f"threads {torch.get_num_threads()}, batch {recipe.denoiser.batch_size}, {arguments.steps} steps")
    print(
        f"step {busy / arguments.steps:.3f} s, {flops / arguments.steps / 1e9:.1f} GFLOP, {rate / 1e9:.0f} GFLOP/s"
    )
    print(
        f"sgemm {fp32 / 1e9:.0f} GFLOP/s: ratio {rate / fp32:.2f}; bf16 {half / 1e9:.0f} GFLOP/s: ratio {rate / half:.2f}"
    )
    whole = busy + making + waiting
    print(
        f"making rows {100 * making / whole:.2f} %, waiting for data {100 * waiting / whole:.2f} % of the time"
    )


if __name__ == "__main__":
    main()
