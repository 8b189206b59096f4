"""Save and resume a training stage: `state.pt`, and `best.pt` with the weights of the lowest dev loss."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from diffusers.training_utils import EMAModel
from torch import nn

from training.recipe import RunRecipe, differences


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a training state atomically: after a kill the file is the old one or the new one.

    Raises:
        ValueError: it cannot be written; the old file is kept.
    """
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, temporary)
        os.replace(temporary, path)
    # PyTorch's writer reports a full disk as a RuntimeError.
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError):
            reason = error.strerror
        else:
            temporary.unlink(missing_ok=True)
            reason = f"{shutil.disk_usage(path.parent).free / 1e9:.1f} GB are free"
        raise ValueError(f"{path} cannot be written ({reason}); its last version is kept") from error


def load_state(path: Path) -> dict[str, Any] | None:
    """Return a saved state, or None if the file does not exist.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    # PyTorch's readers fail in many ways.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        kept = sorted(path.parent.glob(f"{path.stem}-*.pt"))
        what = f"copy {kept[-1].name} over it" if kept else "delete it to train this stage from the start"
        raise ValueError(f"{path} cannot be read ({reason}); {what}") from error
    return state


def changes(folder: Path, recipe: RunRecipe, clips: Mapping[str, str]) -> list[str]:
    """Return how recipe and clips differ from those that a stage's state was trained with.

    Args:
        clips: hashes of the files that describe the clips, by name.
    """
    saved, known = folder / "recipe.yaml", folder / "clips.json"
    found = differences(recipe, yaml.safe_load(saved.read_text()), folder.name) if saved.is_file() else []
    before: dict[str, str] = json.loads(known.read_text()) if known.is_file() else dict(clips)
    names = sorted(before.keys() | clips.keys())
    return found + [
        f"{name} of the clips has changed" for name in names if clips.get(name) != before.get(name)
    ]


def claim_stage(folder: Path, recipe: RunRecipe, clips: Mapping[str, str], *, write: bool = True) -> None:
    """Check that a stage with a state resumes with its recipe and clips, and record the clips.

    Args:
        write: whether this process records.

    Raises:
        ValueError: they differ; the message says how, and what to do.
    """
    if (folder / "state.pt").is_file() and (found := changes(folder, recipe, clips)):
        raise ValueError(
            f"{folder} was trained otherwise: {'; '.join(found)}; set it back, or continue in a new run with "
            "--fork NEW_RUN"
        )
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "clips.json").write_text(json.dumps(dict(clips), indent=2) + "\n")


def fork(run: Path, new: Path, recipe: RunRecipe, clips: Mapping[str, str]) -> None:
    """Copy the states of a run into a new one, with the best weights of stages that do not change.

    Raises:
        ValueError: `new` is not empty, or `run` has no state.
    """
    states = sorted(run.glob("*/state.pt"))
    if not states:
        raise ValueError(f"{run} has no state to fork; train it first")
    if new.exists() and any(new.iterdir()):
        raise ValueError(f"{new} is not empty; to continue that run: --set run={new} without --fork")
    for state in states:
        target = new / state.parent.name
        target.mkdir(parents=True)
        shutil.copyfile(state, target / state.name)
        best = state.with_name("best.pt")
        # Dev losses of another recipe or of other clips do not compare.
        if best.is_file() and not changes(state.parent, recipe, clips):
            shutil.copyfile(best, target / best.name)


def steps_taken(path: Path) -> int:
    """Return the step of a saved state, without its tensors; 0 if the file does not exist or is damaged."""
    try:
        return int(torch.load(path, weights_only=True, map_location="cpu", mmap=True)["step"])
    except Exception:
        return 0


def load_weights(name: str, part: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy weights into `part`.

    Raises:
        ValueError: their shapes differ; the message names the part and the first tensor that does not fit.
    """
    own = part.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        shapes = [tuple(tensors[key].shape) if key in tensors else None for tensors in (own, weights)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name}: the saved weights are of another shape than the recipe's "
                f"({key}: {shapes[1]}, recipe {shapes[0]})"
            )
    part.load_state_dict(weights)


class RateSchedule(Protocol):
    """The settings of a stage's learning rate."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def decay_share(self) -> float: ...


def learning_rate(stage: RateSchedule, n: int) -> float:
    """Return the learning rate of step n: warm-up, constant, cosine decay over the last `decay_share`."""
    decay_steps = max(1.0, stage.decay_share * stage.steps)
    decay = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (stage.steps - n) / decay_steps))
    return stage.learning_rate * min(1.0, (n + 1) / stage.warmup_steps) * decay


class TrainingState:
    """Weights, optimizers, averaged weights, random state and counters of a stage.

    Attributes:
        step: number of steps taken.
        best: lowest dev loss so far.
        stale: number of evaluations since then.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        ema: EMAModel | None = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Collect the objects to save.

        Args:
            parts: modules by name; the weights of a single one are saved without its name.
            ema: running average of the only part's parameters.
            tensors: further state, restored in place.
        """
        self.folder, self.parts, self.optimizers = folder, parts, optimizers
        self.ema, self.tensors = ema, tensors or {}
        self.step, self.best, self.stale = 0, math.inf, 0

    def resume(self) -> bool:
        """Load `state.pt`; return False if there is none.

        Raises:
            ValueError: the file is damaged, or its weights are of another shape than the parts.
        """
        saved = load_state(self.folder / "state.pt")
        if saved is None:
            return False
        self._load_weights(saved["weights"])
        # Earlier versions saved the optimizers by name, or a single one as "optimizer", and less of the rest.
        optimizers = saved["optimizers"] if "optimizers" in saved else [saved["optimizer"]]
        values = optimizers.values() if isinstance(optimizers, dict) else optimizers
        for optimizer, value in zip(self.optimizers, values, strict=True):
            optimizer.load_state_dict(value)
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        for name, tensor in self.tensors.items():
            tensor.copy_(saved[name])
        if "rng" in saved:
            torch.set_rng_state(saved["rng"])
        self.step = saved["step"]
        if (self.folder / "best.pt").is_file():
            self.best, self.stale = saved.get("best", math.inf), saved.get("stale", 0)
        return True

    def save(self) -> None:
        state = {
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "weights": self._weights(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": torch.get_rng_state(),
            **self.tensors,
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        save_state(state, self.folder / "state.pt")

    def keep(self, number: int) -> None:
        """Keep the saved state as `state-STEP.pt`, and of those files the newest `number`."""
        if not number:
            return
        kept = self.folder / f"state-{self.step:09d}.pt"
        kept.unlink(missing_ok=True)
        # The next save replaces `state.pt`, so a link costs no copy.
        try:
            os.link(self.folder / "state.pt", kept)
        except OSError:
            shutil.copyfile(self.folder / "state.pt", kept)
        for old in sorted(self.folder.glob("state-*.pt"))[:-number]:
            old.unlink()

    def record(self, loss: float) -> None:
        """Note the dev loss of the present weights, and write them to `best.pt` if it is the lowest."""
        self.stale = 0 if loss < self.best else self.stale + 1
        if loss < self.best:
            self.best = loss
            best = {"step": self.step, "dev": loss, "weights": self._weights()}
            save_state(best, self.folder / "best.pt")

    def load_best(self) -> None:
        """Put the best weights into the parts; without an evaluation, the averaged ones if there are any."""
        best = load_state(self.folder / "best.pt")
        if best is not None:
            self._load_weights(best["weights"])
        elif self.ema is not None:
            self.ema.copy_to(self._parameters())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Exchange the weights for their running average within the context."""
        assert self.ema is not None
        self.ema.store(self._parameters())
        self.ema.copy_to(self._parameters())
        yield
        self.ema.restore(self._parameters())

    def set_learning_rate(self, rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _parameters(self) -> list[nn.Parameter]:
        return [p for part in self.parts.values() for p in part.parameters()]

    def _weights(self) -> dict[str, Any]:
        weights = {name: part.state_dict() for name, part in self.parts.items()}
        return weights if len(weights) > 1 else next(iter(weights.values()))

    def _load_weights(self, saved: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            load_weights(name, part, saved[name] if len(self.parts) > 1 else saved)
