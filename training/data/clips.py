"""Read prepared clips from shards, one array at a time, and crop them at random."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.audio.mel import LOG_FLOOR
from models.bundle import file_sha256
from models.media.shards import ShardReader


class Clips:
    """One split of a prepared folder; only the index is in memory until `keep` is called."""

    def __init__(self, reader: ShardReader, index: list[dict[str, Any]]) -> None:
        self._reader, self.index = reader, index
        self._kept: dict[tuple[int, str], torch.Tensor] = {}

    def keep(self) -> None:
        """Read every clip into memory."""
        for i, line in enumerate(self.index):
            self._kept |= {(i, name): self._read(i, name) for name in line["arrays"]}

    def __len__(self) -> int:
        return len(self.index)

    def _read(self, i: int, name: str) -> torch.Tensor:
        if (i, name) in self._kept:
            return self._kept[i, name]
        return torch.from_numpy(self._reader.array(self.index[i], name))

    def describe(self, i: int) -> str:
        """Return the video and start of clip i for a message, and which of its arrays are not finite."""
        line = self.index[i]
        bad = [name for name in line["arrays"] if not self._read(i, name).isfinite().all()]
        place = f"{line['video']} at {line.get('start_s', 0):g} s"
        return f"{place} ({', '.join(bad)} not finite)" if bad else place

    def pcm(self, i: int) -> torch.Tensor:
        """Return clip i's sound (T,) as int16."""
        return self._read(i, "waveform")

    def waveform(self, i: int) -> torch.Tensor:
        """Return clip i's sound (T,) in [-1, 1]."""
        return self.pcm(i).float() / 32767

    def mel(self, i: int) -> torch.Tensor:
        """Return clip i's log-mel (F, n_mels)."""
        return self._read(i, "mel").float()

    def embeds(self, i: int) -> torch.Tensor:
        """Return the embeddings (K, D) of clip i's frames."""
        return self._read(i, "embeds").float()

    def captions(self, i: int) -> torch.Tensor:
        """Return the embeddings (C, D) of clip i's captions, if `prepare` got captions."""
        return self._read(i, "captions").float()

    def correspondence(self, i: int) -> float | None:
        """Return the quantile 0..1 of how well clip i's sound fits its image; None without a score."""
        quantile: float | None = self.index[i].get("correspondence")
        return quantile


@dataclass(frozen=True)
class ClipSet:
    """A prepared folder: two splits, and the statistics of the training clips.

    `mel_mean`, `mel_std` (n_mels,); `image_mean`, `text_mean` (D,). `output_gain` restores the level that
    clips had before `prepare` scaled their peaks (geometric mean over clips).
    """

    train: Clips
    dev: Clips
    mel_mean: torch.Tensor
    mel_std: torch.Tensor
    image_mean: torch.Tensor
    text_mean: torch.Tensor
    output_gain: float
    hashes: Mapping[str, str] = field(default_factory=dict)  # of the files that describe the clips

    @property
    def max_duration_s(self) -> float:
        """Length of the longest clip, rounded down to half a second: the limit of a bundle's requests."""
        return int(2 * max(line["duration_s"] for line in self.train.index)) / 2


def load_clips(folder: Path, *, correspondence: bool = True) -> ClipSet:
    """Open a prepared folder, by default with the scores of `clipsynth correspondence` if there are any.

    Raises:
        ValueError: `folder` is not a prepared folder, its statistics are not finite, or its `agreement.json`
            belongs to another index.
    """
    if not (folder / "index.jsonl").is_file():
        raise ValueError(f"{folder} holds no prepared clips; run: clipsynth prepare VIDEOS {folder}")
    with (folder / "index.jsonl").open() as f:
        index = [json.loads(line) for line in f]
    if correspondence and (folder / "agreement.json").is_file():
        _add_correspondence(index, folder)
    reader = ShardReader(folder / "shards")
    train, dev = ([line for line in index if line["dev"] is split] for split in (False, True))
    try:
        statistics = load_file(folder / "statistics.safetensors")
    except SafetensorError as error:
        raise ValueError(
            f"{folder / 'statistics.safetensors'} is damaged ({error}); prepare again"
        ) from error
    for name, value in statistics.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} in {folder / 'statistics.safetensors'} is not finite; prepare again")
    output_gain = 1 / float(statistics.pop("gain"))
    files = ["index.jsonl"] + ["agreement.json"] * (correspondence and (folder / "agreement.json").is_file())
    return ClipSet(
        Clips(reader, train or dev),
        Clips(reader, dev or train),
        output_gain=output_gain,
        hashes={name: file_sha256(folder / name) for name in files},
        **statistics,
    )


def _add_correspondence(index: list[dict[str, Any]], folder: Path) -> None:
    """Add each clip's quantile to its line of the index."""
    record = json.loads((folder / "agreement.json").read_text())
    if record["index"] != file_sha256(folder / "index.jsonl"):
        raise ValueError(
            f"{folder / 'agreement.json'} belongs to other clips; run: clipsynth correspondence {folder}"
        )
    for line in index:
        if line["key"] in record["clips"]:
            line["correspondence"] = record["clips"][line["key"]][1]


def crop(x: torch.Tensor, length: int, start: int, *, fill: float = 0.0) -> torch.Tensor:
    """Return x[start : start + length] along the first dimension, padded with `fill`."""
    part = x[start : start + length]
    if len(part) == length:
        return part
    return torch.cat([part, part.new_full((length - len(part), *part.shape[1:]), fill)])


def crop_mel(log_mel: torch.Tensor, length: int, start: int) -> torch.Tensor:
    """Return `length` frames of a log-mel (F, n_mels) from `start` on, padded with silence."""
    return crop(log_mel, length, start, fill=LOG_FLOOR)


def random_start(size: int, length: int, generator: torch.Generator) -> int:
    """Return the random start of a crop of `length` in `size`; 0 if it does not fit."""
    return int(torch.randint(max(size - length, 0) + 1, (), generator=generator))
