"""One view of all stages of a training, and the trackers that keep its figures.

The view shows steps, loss, throughput, share of data wait and time left: a live table on a terminal,
otherwise a log line a minute.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

logger = logging.getLogger(__name__)
LINE_EVERY_S = 60.0  # without a terminal


@dataclass
class StageProgress:
    """Steps and figures of one stage.

    `step_s` is the time of a step, unknown before the first ones; until then it is that of the stage `like`
    times a factor.
    """

    done: int
    total: int
    step_s: float | None = None
    figures: str = ""
    like: tuple[StageProgress, float] | None = None

    @property
    def left_s(self) -> float | None:
        """Time left; None if unknown."""
        left, step_s = max(0, self.total - self.done), self.step_s
        if step_s is None and self.like and self.like[0].step_s is not None:
            step_s = self.like[0].step_s * self.like[1]
        return 0.0 if not left else None if step_s is None else left * step_s


class ProgressView:
    """Show the stages that will run, in order."""

    def __init__(self, stages: Mapping[str, StageProgress] | None = None, *, show: bool = True) -> None:
        self.stages = dict(stages or {})
        self._show, self._console = show, Console()
        self._live: Live | None = None
        self._line_at = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the view within the context; the outermost one counts."""
        if not self._show or self._live is not None or not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self.table, console=self._console, refresh_per_second=2) as self._live:
            try:
                yield
            finally:
                self._live.refresh()
                self._live = None

    def stage(self, name: str, done: int, total: int) -> StageProgress:
        """Return the stage, added if the view lacks it."""
        stage = self.stages.setdefault(name, StageProgress(done, total))
        stage.done, stage.total = done, total
        return stage

    def update(self, name: str) -> None:
        """Write a log line about a stage, if there is no terminal and the last line is a minute old."""
        now = time.monotonic()
        if self._show and self._live is None and now - self._line_at >= LINE_EVERY_S:
            self._line_at = now
            logger.info("%s", self.line(name))

    def line(self, name: str) -> str:
        """Return the stage as a line of text."""
        stage = self.stages[name]
        parts = [f"{name} {stage.done:,}/{stage.total:,}", stage.figures, f"left {span(stage.left_s)}"]
        if len(self.stages) > 1:
            parts.append(f"all stages {self.all_left()}")
        return ", ".join(part for part in parts if part)

    def all_left(self) -> str:
        """Return the time left of all stages; "over" it if that of some is unknown."""
        known = [stage.left_s for stage in self.stages.values() if stage.left_s is not None]
        return ("over " if len(known) < len(self.stages) else "") + span(sum(known))

    def table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, stage in self.stages.items():
            bar = ProgressBar(total=max(1, stage.total), completed=stage.done, width=24)
            table.add_row(
                name, bar, f"{stage.done:,}/{stage.total:,}", stage.figures, f"left {span(stage.left_s)}"
            )
        if len(self.stages) > 1:
            table.add_row("all stages", "", "", "", f"left {self.all_left()}")
        return table


def span(seconds: float | None) -> str:
    """Return a duration as h:mm:ss, or "?"."""
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))


class Trackers:
    """Send figures of a stage to trackers of accelerate; images and sounds to those that take them."""

    def __init__(
        self, names: Sequence[str], run: str, stage: str, folder: Path, recipe: dict[str, Any]
    ) -> None:
        """Start the trackers.

        Args:
            run: name of the run, that is of the project or experiment.
            folder: the stage's folder; TensorBoard writes there, and its path identifies a resumed run.

        Raises:
            ValueError: a tracker is not installed.
        """
        self.stage, self._trackers = stage, {}
        there = {str(name) for name in get_available_trackers()}
        if missing := [name for name in names if name not in there]:
            raise ValueError(
                f"tracker {missing[0]} is not installed; pip install {missing[0]}, or set trackers"
            )
        title = f"{run}/{stage}"
        same = {"id": hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16], "resume": "allow"}
        options = {"wandb": {"name": title, **same}, "mlflow": {"run_name": title}}
        for name in names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            where = ("tensorboard", str(folder)) if kind.requires_logging_directory else (run,)
            self._trackers[name] = tracker = kind(*where, **options.get(name, {}))
            tracker.start()
            # TensorBoard would write them as another run.
            if name != "tensorboard":
                tracker.store_init_configuration(recipe)

    def log(self, name: str, n: int, value: float) -> None:
        for tracker in self._trackers.values():
            tracker.log({f"{self.stage}/{name}": value}, step=n)

    def image(self, name: str, n: int, image: torch.Tensor) -> None:
        """Log a grey image (H, W) in [0, 1] of step n."""
        for kind, tracker in self._trackers.items():
            if hasattr(tracker, "log_images"):
                images = image[None, None] if kind == "tensorboard" else [image.numpy()]
                tracker.log_images({f"{self.stage}/{name}": images}, step=n)

    def sound(self, name: str, n: int, waveform: torch.Tensor, sample_rate: int) -> None:
        """Log a sound (T,) in [-1, 1] of step n."""
        tag = f"{self.stage}/{name}"
        for kind, tracker in self._trackers.items():
            if kind == "tensorboard":
                tracker.tracker.add_audio(tag, waveform[None], n, sample_rate)
            elif kind == "wandb":
                import wandb

                tracker.log({tag: wandb.Audio(waveform.numpy(), sample_rate)}, step=n)

    def finish(self) -> None:
        for tracker in self._trackers.values():
            tracker.finish()
