"""What both training stages share: resume, steps with a progress bar, atomic saves, stop on SIGTERM."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a training state so that a kill leaves the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Return the saved state, or None where there is none."""
    return torch.load(path, weights_only=True) if path.is_file() else None


def load_weights(name: str, part: torch.nn.Module, init: torch.nn.Module) -> None:
    """Copy the weights of `init` into `part`.

    Raises:
        ValueError: the two differ in shape; the message names the part and the first tensor that does not fit.
    """
    ours, theirs = part.state_dict(), init.state_dict()
    for key in sorted(ours.keys() | theirs.keys()):
        shapes = [tuple(weights[key].shape) if key in weights else None for weights in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name}: the bundle to start from is of another shape than the recipe ({key}: {shapes[1]}, recipe {shapes[0]})"
            )
    part.load_state_dict(theirs)


def cpu_computes_bf16() -> bool:
    """Return whether this CPU multiplies bf16 matrices faster than fp32 ones."""
    return bool(
        torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def run_steps(
    name: str,
    *,
    first: int,
    last: int,
    step: Callable[[int], float],
    save: Callable[[int], None],
    save_every_s: float,
    log_path: Path,
) -> None:
    """Call `step(n)` for n in [first, last), which returns a loss; call `save(n)` with the steps done, now and then and at the end.

    SIGTERM ends the loop after the current step, with a save.
    """
    stop = False

    def request_stop(*_: object) -> None:
        nonlocal stop
        stop = True

    previous = signal.signal(signal.SIGTERM, request_stop)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    saved_at, mean, n = time.monotonic(), None, first
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns) as progress, log_path.open("a") as log:
            bar = progress.add_task(name, total=last, completed=first, loss=float("nan"))
            while n < last and not stop:
                loss = step(n)
                mean = loss if mean is None else 0.98 * mean + 0.02 * loss
                n += 1
                progress.update(bar, completed=n, loss=mean)
                if n % 50 == 0:
                    log.write(f"{n}\t{mean:.5f}\t{time.time():.0f}\n")
                    log.flush()
                if time.monotonic() - saved_at > save_every_s:
                    save(n)
                    saved_at = time.monotonic()
    finally:
        signal.signal(signal.SIGTERM, previous)
    if n > first:
        save(n)
