"""What the training stages share: a run's folder and logs, steps with a progress bar, atomic saves, resume, and a stop on SIGTERM."""

from __future__ import annotations

import json
import math
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from models.bundle import Manifest
from training.recipe import RunRecipe
from training.state import TrainingState

LOG_EVERY = 25  # steps
T = TypeVar("T")
AGREE_EVERY = 16  # steps after which processes ask each other whether to stop


class Terminated(SystemExit):
    """SIGTERM ended a stage before its last step. Its state is saved; nothing that follows may take it for trained."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def build_accelerator() -> Accelerator:
    """Return the accelerator of this process: one process, or one of many where a launcher says so."""
    return Accelerator(cpu=not torch.cuda.is_available(), rng_types=[])


def autocast(recipe: RunRecipe, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass: bf16 where the recipe allows and the device computes in it. bf16 needs no gradient scaling."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = device.type == "cpu" and (
            torch.backends.cpu.get_cpu_capability().startswith("AVX512")
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16 and able)


def update(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    part: torch.nn.Module,
    loss: torch.Tensor,
    max_norm: float,
) -> None:
    """Take one step of `optimizer` on `part`, with gradients clipped to `max_norm`."""
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    torch.nn.utils.clip_grad_norm_(part.parameters(), max_norm)
    optimizer.step()


def check_rows(rows: int, processes: int, key: str) -> None:
    """Check that each process gets as many rows of a step, or a row's weight would depend on its process.

    Raises:
        ValueError: the rows do not divide; the message names the recipe's `key`.
    """
    if rows % processes:
        raise ValueError(f"{rows} rows ({key}) are not a multiple of {processes} processes")


def git_commit() -> str | None:
    """Return the commit of this code; None where it is not in a repository, or there is no git, as in the image."""
    command, root = ["git", "rev-parse", "HEAD"], Path(__file__).resolve().parent
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_environment() -> dict[str, Any]:
    """Return what a run depended on besides its recipe."""
    packages = ("torch", "diffusers", "transformers", "accelerate", "numpy")
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "command": sys.argv[1:],
    }


def one_ahead(make: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """Yield make(n) for each number; a thread makes the next while the last is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming: Future[T] | None = None
        for n in numbers:
            ready, coming = coming, pool.submit(make, n)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def arriving(items: Dataset[T], numbers: Sequence[int], workers: int) -> Iterator[T]:
    """Yield the items of these numbers in order, made ahead by a thread or, for what takes longer than a step, by processes."""
    if not workers:
        return one_ahead(items.__getitem__, numbers)
    own = torch.Generator()  # the global one would give the workers' seed, and what comes after would depend on how often a run was resumed
    loader = DataLoader(
        items, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=4, generator=own
    )
    return iter(loader)


class Run:
    """One stage of a recipe in its folder: `recipe.yaml`, `environment.json`, TensorBoard logs, `loss.tsv`, `state.pt`.

    Only the main process writes. State, logs and evaluations of the others are not needed: all hold the same weights.
    """

    def __init__(self, stage: str, folder: Path, recipe: RunRecipe, accelerator: Accelerator) -> None:
        self.stage, self.folder, self.recipe, self.accelerator = stage, folder, recipe, accelerator
        self._writer: SummaryWriter | None = None
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(), sort_keys=False))
            (folder / "environment.json").write_text(json.dumps(describe_environment(), indent=2) + "\n")
            self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, name: str, n: int, value: float) -> None:
        """Note a figure of step n in TensorBoard and in `name.tsv`."""
        if self._writer is not None:
            self._writer.add_scalar(f"{self.stage}/{name}", value, n)
            with (self.folder / f"{name}.tsv").open("a") as f:
                f.write(f"{n}\t{value:.5f}\t{time.time():.0f}\n")

    def show(self, n: int, image: torch.Tensor) -> None:
        """Put a grey image (H, W) in [0, 1] of step n into TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(f"{self.stage}/spectrograms", image[None], n)

    def play(self, n: int, waveform: torch.Tensor) -> None:
        """Put a sound (T,) in [-1, 1] of step n into TensorBoard."""
        if self._writer is not None:
            self._writer.add_audio(f"{self.stage}/samples", waveform[None], n, Manifest.sample_rate)

    def steps(
        self,
        state: TrainingState,
        last: int,
        step: Callable[[int], torch.Tensor],
        *,
        evaluate: Callable[[int], bool] | None = None,
        evaluate_every: int = 1,
        clips_per_step: int = 1,
    ) -> None:
        """Call `step(n)` for n in [first, last), which returns a loss (); save `state(steps done)` now and then and at the end.

        Losses are read every `LOG_EVERY` steps alone: to read one, the host must wait for the device.

        `evaluate(steps done)` runs on the main process and may say that it is time to stop. So may SIGTERM, after the step at hand.

        Raises:
            Terminated: SIGTERM came, to this process or another of the run; the state is saved.
        """
        terminated = False

        def terminate(*_: object) -> None:
            nonlocal terminated
            terminated = True

        previous = signal.signal(signal.SIGTERM, terminate)
        saved_at, first, stop = time.monotonic(), state.step, False
        mean: torch.Tensor | None = None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}, {task.fields[rate]:.1f} clips/s"),
            TimeRemainingColumn(),
        )
        try:
            with Progress(*columns, disable=not self.accelerator.is_main_process) as progress:
                bar = progress.add_task(self.stage, total=last, completed=first, loss=math.nan, rate=math.nan)
                while state.step < last and not stop:
                    loss = step(state.step).detach().float()
                    state.step = n = state.step + 1
                    mean = loss if mean is None else 0.98 * mean + 0.02 * loss
                    progress.update(bar, completed=n)
                    if n % LOG_EVERY == 0 or n == last:
                        rate = (progress.tasks[bar].speed or math.nan) * clips_per_step
                        progress.update(bar, loss=float(mean), rate=rate)
                        self.log("loss", n, float(mean))
                    stop = terminated
                    due = evaluate is not None and (n % evaluate_every == 0 or n == last)
                    if due and evaluate is not None and self.accelerator.is_main_process:
                        stop = not evaluate(n) or stop
                    if due or n % AGREE_EVERY == 0 or self.accelerator.num_processes == 1:
                        stop = self._any(stop)
                    else:
                        stop = False
                    if time.monotonic() - saved_at > self.recipe.save_every_s:
                        self._save(state)
                        saved_at = time.monotonic()
        finally:
            signal.signal(signal.SIGTERM, previous)
        if state.step > first:
            self._save(state)
        if self._writer is not None:
            self._writer.close()
        self.accelerator.wait_for_everyone()
        if self._any(terminated):
            raise Terminated

    def _save(self, state: TrainingState) -> None:
        if self.accelerator.is_main_process:
            state.save()

    def _any(self, flag: bool) -> bool:
        """Return whether any process says yes."""
        if self.accelerator.num_processes == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(votes, "sum") > 0)
