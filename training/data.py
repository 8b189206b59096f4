"""Prepared clips in memory: waveforms, mels and frame embeddings, and random crops of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file

from models.mel import MelSpectrogram


@dataclass(frozen=True)
class Clip:
    """`waveform` (T,) in [-1, 1]; `mel` (F, n_mels); `embeds` (K, D) of its frames."""

    waveform: torch.Tensor
    mel: torch.Tensor
    embeds: torch.Tensor


@dataclass(frozen=True)
class ClipSet:
    """The two splits of a prepared folder, and the mean text embedding (D,) that it carries.

    `output_gain` brings a generated sound back to the level that the clips had before `prepare` scaled their peaks (median over clips).
    """

    train: list[Clip]
    dev: list[Clip]
    text_mean: torch.Tensor
    output_gain: float = 1.0

    @property
    def max_duration_s(self) -> float:
        """The longest clip, rounded down to half a second; what a bundle trained here may be asked for."""
        return max(len(clip.waveform) for clip in self.train) // 8000 / 2


def load_clips(folder: Path, mel: MelSpectrogram) -> ClipSet:
    """Read what `prepare` wrote.

    Raises:
        ValueError: `folder` is not a prepared folder.
    """
    if not (folder / "clips.safetensors").is_file():
        raise ValueError(f"{folder} holds no prepared clips; run: clipsynth prepare VIDEOS {folder}")
    tensors = load_file(folder / "clips.safetensors")
    splits: dict[bool, list[Clip]] = {False: [], True: []}
    lines = [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        waveform = tensors[f"{i}.waveform"].float() / 32767
        splits[line["dev"]].append(Clip(waveform, mel(waveform[None])[0], tensors[f"{i}.embeds"].float()))
    return ClipSet(
        train=splits[False] or splits[True],
        dev=splits[True] or splits[False],
        text_mean=tensors["text_mean"],
        output_gain=median(1 / line["gain"] for line in lines),
    )


def crop(x: torch.Tensor, length: int, start: int) -> torch.Tensor:
    """Return x[start : start + length] along the first dimension, with zeros after its end."""
    part = x[start : start + length]
    return (
        torch.cat([part, part.new_zeros(length - len(part), *part.shape[1:])]) if len(part) < length else part
    )


def random_start(size: int, length: int, generator: torch.Generator) -> int:
    """Return a uniform start of a crop of `length` in `size`; 0 where it does not fit."""
    return int(torch.randint(max(size - length, 0) + 1, (), generator=generator))
