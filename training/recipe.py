"""Typed recipes: YAML files whose unknown keys and wrong types are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class VocoderRecipe(_Section):
    """Adam on mel and multi-resolution STFT distances; `segment_frames` mel frames per sample."""

    steps: PositiveInt
    batch_size: PositiveInt = 16
    segment_frames: PositiveInt = 40
    learning_rate: PositiveFloat = 1e-3
    upsample_initial_channel: PositiveInt = 192


class DenoiserRecipe(_Section):
    """The flow-matching loss on crops of `min_frames` to `max_frames` mel frames, one length per batch.

    The learning rate rises over `warmup_steps`, stays, and falls linearly to zero over the last `decay_share` of the steps, so that a run
    can be prolonged from any point before (Hägele et al. 2024). `optimizer` "muon" updates the blocks' matrices by Muon (Jordan et al.
    2024) at AdamW's step size, and everything else by AdamW.
    """

    steps: PositiveInt
    batch_size: PositiveInt = 32
    dim: PositiveInt = 256
    depth: PositiveInt = 8
    heads: PositiveInt = 4
    frames_per_token: PositiveInt = 4
    prediction: Literal["velocity", "data"] = "velocity"
    dropout: float = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 6e-4
    warmup_steps: PositiveInt = 200
    decay_share: float = 0.2
    weight_decay: float = 0.02
    ema_decay: PositiveFloat = 0.999
    cond_dropout_prob: float = 0.1
    max_sigma: float = 1.0
    min_frames: PositiveInt = 100
    max_frames: PositiveInt = 500


class Recipe(_Section):
    """What to train, on which prepared folder, into which run folder. Relative paths count from the working directory."""

    name: str
    clips: str
    run: str
    seed: int = 0
    save_every_s: PositiveFloat = 120.0
    threads: int = 0
    text_sigma: float = 0.5
    bank_share: float = 0.0
    bank_tau: PositiveFloat = 0.1
    max_bank_size: PositiveInt = 4096
    vocoder: VocoderRecipe
    denoiser: DenoiserRecipe


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe; `overrides` are "a.b=value" with YAML values.

    Raises:
        ValueError: unknown key, wrong type, or an override without "=" (pydantic's error is one).
    """
    values = yaml.safe_load(path.read_text())
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--set needs key=value, got {override!r}")
        *parents, leaf = key.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = yaml.safe_load(value)
    return Recipe.model_validate(values)
