"""The loop of every training stage: folder, logs, progress, saves and the stop on signals."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import yaml
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from models.bundle import Manifest
from training.progress import LINE_EVERY_S, ProgressView, Trackers
from training.recipe import RunRecipe
from training.state import TrainingState

LOG_EVERY = 25  # steps
T = TypeVar("T")
R = TypeVar("R", bound=RunRecipe)
AGREE_EVERY = 16  # steps between votes of the processes on whether to stop


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Terminated(SystemExit):
    """A signal ended a stage before its last step; its state is saved, and later stages must not run."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)


class StopRequest:
    """Note the first of `STOP_SIGNALS` within a context; a second SIGINT (Ctrl-C) ends at once.

    Attributes:
        number: the signal; 0 without one.
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            # `nohup` ignores SIGHUP, so that a closed terminal does not end the run.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGINT == self.number:
            raise KeyboardInterrupt
        self.number = self.number or number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def build_accelerator() -> Accelerator:
    """Return the accelerator of this process, which a launcher may have started as one of many."""
    return Accelerator(cpu=not torch.cuda.is_available(), rng_types=[])


def autocast(recipe: RunRecipe, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass: bf16 if the recipe allows it and the device computes in it."""
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported = device.type == "cpu" and (
            torch.backends.cpu.get_cpu_capability().startswith("AVX512")
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16 and supported)


def update(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    part: torch.nn.Module,
    loss: torch.Tensor,
    max_norm: float,
) -> torch.Tensor:
    """Take one step of `optimizer` on `part`, with gradients clipped to `max_norm`; return their norm ()."""
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(part.parameters(), max_norm)
    optimizer.step()
    return norm


def marked(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Return the loss () without its graph, not finite if the norm () of the gradients is not.

    All processes have the same norm, so they stop at the same step.
    """
    return loss.detach().float() + 0 * norm.detach().float()


def check_rows(rows: int, processes: int, key: str) -> None:
    """Check that all processes get equally many rows; otherwise the weights of rows would differ.

    Raises:
        ValueError: the rows do not divide; the message names the recipe's `key`.
    """
    if rows % processes:
        raise ValueError(f"{rows} rows ({key}) are not a multiple of {processes} processes")


def git_commit() -> str | None:
    """Return the commit of this code; None without git or outside a repository."""
    command, root = ["git", "rev-parse", "HEAD"], Path(__file__).resolve().parent
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_environment() -> dict[str, Any]:
    """Return the commit, versions, device and command of a run."""
    packages = ("torch", "diffusers", "transformers", "accelerate", "numpy")
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "command": sys.argv[1:],
    }


def one_ahead(make: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """Yield make(n) for each number; a thread makes the next item while the last is in use."""
    with ThreadPoolExecutor(1) as pool:
        pending: Future[T] | None = None
        for n in numbers:
            ready, pending = pending, pool.submit(make, n)
            if ready is not None:
                yield ready.result()
        if pending is not None:
            yield pending.result()


def prefetch(items: Dataset[T], numbers: Sequence[int], workers: int) -> Iterator[T]:
    """Yield the items of these numbers in order, made ahead by a thread, or by `workers` processes."""
    if not workers:
        return one_ahead(items.__getitem__, numbers)
    # A draw from the global generator would make later draws depend on how often the run was resumed.
    own = torch.Generator()
    loader = DataLoader(
        items, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=4, generator=own
    )
    return iter(loader)


class Run(Generic[R]):
    """Run one stage; write `recipe.yaml`, `environment.json`, figures, `state.pt`.

    Only the main process writes and evaluates, because all processes have the same weights.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        recipe: R,
        accelerator: Accelerator,
        view: ProgressView | None = None,
        title: str | None = None,
    ) -> None:
        """Open the folder.

        Args:
            view: shows all stages; default: this one alone.
            title: name of the stage in the view.
        """
        self.stage, self.folder, self.recipe, self.accelerator = stage, folder, recipe, accelerator
        self.view = view or ProgressView(show=accelerator.is_main_process)
        self.title = title or stage
        self._waited_s = 0.0
        self._trackers: Trackers | None = None
        if accelerator.is_main_process:
            values = recipe.model_dump()
            self._trackers = Trackers(recipe.trackers, recipe.name, stage, folder, values)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
            (folder / "environment.json").write_text(json.dumps(describe_environment(), indent=2) + "\n")

    def log(self, name: str, n: int, value: float) -> None:
        """Write a figure of step n to the trackers and `name.tsv`."""
        if self._trackers is not None:
            self._trackers.log(name, n, value)
            with (self.folder / f"{name}.tsv").open("a") as f:
                f.write(f"{n}\t{value:.5f}\t{time.time():.0f}\n")

    def show(self, n: int, image: torch.Tensor) -> None:
        """Show a grey image (H, W) in [0, 1] of step n in the trackers."""
        if self._trackers is not None:
            self._trackers.image("spectrograms", n, image)

    def play(self, n: int, waveform: torch.Tensor) -> None:
        """Keep a sound (T,) in [-1, 1] of step n in the trackers."""
        if self._trackers is not None:
            self._trackers.sound("samples", n, waveform, Manifest.sample_rate)

    def timed(self, items: Iterator[T]) -> Iterator[T]:
        """Yield the items, and count the time that the loop waits for them."""
        while True:
            began = time.monotonic()
            try:
                item = next(items)
            except StopIteration:
                return
            self._waited_s += time.monotonic() - began
            yield item

    def steps(
        self,
        state: TrainingState,
        last: int,
        step: Callable[[int], torch.Tensor],
        *,
        total: int | None = None,
        evaluate: Callable[[int], bool] | None = None,
        evaluate_every: int = 1,
        clips_per_step: int = 1,
        clips_of: Callable[[int], Sequence[str]] | None = None,
    ) -> None:
        """Take steps from `state.step` to `last`; save every `save_every_s` seconds and at the end.

        Losses are read only every `LOG_EVERY` steps or once a minute, because the host must wait for the
        device to read one.
        A state is saved only if all losses before it are finite.

        Args:
            step: takes step n and returns its loss (); see `marked`.
            total: steps of the stage, to show; default: `last`.
            evaluate: gets the number of steps taken and returns whether to continue; runs on the main
                process.
            clips_of: returns descriptions of the clips of step n, for the message about a bad loss.

        Raises:
            Terminated: this process or another of the run got one of `STOP_SIGNALS`; the step was finished
                and the state saved.
            ValueError: a loss is not finite; the message names the clips of that step.
        """
        saved_at, first, stop = time.monotonic(), state.step, False
        mean: torch.Tensor | None = None
        losses: list[torch.Tensor] = []

        def first_bad() -> int | None:
            """Return the first step whose loss is not finite; forget the others."""
            if not losses:
                return None
            bad = (~torch.stack(losses).isfinite()).nonzero().flatten().tolist()
            found = state.step - len(losses) + bad[0] if bad else None
            if not bad:
                losses.clear()
            return found

        main, shown = self.accelerator.is_main_process, self.view.stage(self.title, first, total or last)
        since, counted = time.monotonic(), first
        with StopRequest() as request, self.view.shown():
            while state.step < last and not stop:
                loss = step(state.step).detach().float()
                losses.append(loss)
                state.step = n = state.step + 1
                mean = loss if mean is None else 0.98 * mean + 0.02 * loss
                shown.done = n
                # The first step warms up; it says nothing about the speed.
                if n == first + 1:
                    since, counted, self._waited_s = time.monotonic(), n, 0.0
                stop = bool(request.number)
                due = evaluate is not None and (n % evaluate_every == 0 or n == last)
                slow = time.monotonic() - since > LINE_EVERY_S
                if n % LOG_EVERY == 0 or n == last or due or slow:
                    if (bad := first_bad()) is not None:
                        raise ValueError(self._not_finite(bad, clips_of))
                    self.log("loss", n, float(mean))
                    shown.figures = f"loss {float(mean):.4f}"
                    if n > counted:
                        took = time.monotonic() - since
                        step_s, waited = took / (n - counted), self._waited_s / took
                        shown.step_s = step_s if shown.step_s is None else 0.7 * shown.step_s + 0.3 * step_s
                        rate = clips_per_step / step_s
                        shown.figures += f", {rate:.1f} clips/s, data wait {waited:.0%}"
                        self.log("clips_per_s", n, rate)
                        self.log("data_wait", n, waited)
                        since, counted, self._waited_s = time.monotonic(), n, 0.0
                    self.view.update(self.title)
                if due and evaluate is not None and main:
                    stop = not evaluate(n) or stop
                    state.save()
                    state.keep(self.recipe.keep_states)
                if due or n % AGREE_EVERY == 0 or self.accelerator.num_processes == 1:
                    stop = self._any(stop)
                else:
                    stop = False
                if main and time.monotonic() - saved_at > self.recipe.save_every_s and first_bad() is None:
                    self._save(state)
                    saved_at = time.monotonic()
            if (bad := first_bad()) is not None:
                raise ValueError(self._not_finite(bad, clips_of))
            if state.step > first:
                self._save(state)
        if self._trackers is not None:
            self._trackers.finish()
        self.accelerator.wait_for_everyone()
        if self._any(bool(request.number)):
            raise Terminated(request.number or signal.SIGTERM)

    def _not_finite(self, n: int, clips_of: Callable[[int], Sequence[str]] | None) -> str:
        """Return the message about step n, whose loss is not finite; all its clips go to `not_finite.txt`."""
        message = f"{self.stage}: the loss of step {n} is not finite, so training stopped"
        if clips_of is None:
            return message
        clips = sorted(set(clips_of(n)), key=lambda clip: ("not finite" not in clip, clip))
        if self.accelerator.is_main_process:
            (self.folder / "not_finite.txt").write_text("".join(f"{clip}\n" for clip in clips))
        more = f" and {len(clips) - 4} more in {self.folder / 'not_finite.txt'}" if len(clips) > 4 else ""
        cause = "prepare these videos again or remove them"
        if "not finite" not in clips[0]:
            cause = "their values are finite, so try a lower learning rate"
        return f"{message} at the clips {', '.join(clips[:4])}{more}; the last state is kept; {cause}"

    def _save(self, state: TrainingState) -> None:
        if self.accelerator.is_main_process:
            state.save()

    def _any(self, flag: bool) -> bool:
        """Return whether the flag of any process is set."""
        if self.accelerator.num_processes == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(votes, "sum") > 0)
