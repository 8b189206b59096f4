"""Read prepared clips from shards, one array at a time, and crop them at random."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.audio.mel import LOG_FLOOR
from models.media.shards import ShardReader
from training.data.index import INDEX, ClipIndex, open_index
from training.data.remote import open_remote
from training.recipe import RunRecipe

DEV_FRAMES = 400  # of a dev clip that is validated: 4 s


class ClipLines(Sequence[dict[str, Any]]):
    """The lines of the index about some clips, each parsed when it is asked for."""

    def __init__(self, index: ClipIndex, rows: np.ndarray) -> None:
        self._index, self._rows = index, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._index.lines(self._rows.tolist())

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return list(self._index.lines(self._rows[i].tolist()))
        return next(self._index.lines([int(self._rows[i])]))


class Clips:
    """One split of a prepared folder; `keep` reads its arrays into memory.

    Attributes:
        index: a line per clip.
    """

    def __init__(self, reader: ShardReader, index: ClipIndex, rows: np.ndarray) -> None:
        """Choose the clips `rows` (N,) of an index."""
        self._reader, self._all, self._rows = reader, index, rows
        self.index = ClipLines(index, rows)
        self._kept: dict[tuple[int, str], torch.Tensor] = {}

    def keep(self) -> None:
        """Read every clip into memory."""
        for i in range(len(self)):
            self._kept |= {(i, name): self._read(i, name) for name in self._arrays(i)}

    def __len__(self) -> int:
        return len(self._rows)

    def _arrays(self, i: int) -> list[str]:
        return [name for name, place in self._all.places.items() if place.size[self._rows[i]]]

    def _read(self, i: int, name: str) -> torch.Tensor:
        if (i, name) in self._kept:
            return self._kept[i, name]
        place, row = self._all.places[name], self._rows[i]
        shard = self._all.shards[place.shard[row]]
        return torch.from_numpy(self._reader.read(shard, int(place.offset[row]), int(place.size[row])))

    def ahead(self, numbers: Sequence[int], names: Sequence[str]) -> None:
        """Prepare to read arrays of clips."""
        places = []
        for name in names:
            place = self._all.places[name]
            for row in self._rows[list(numbers)].tolist():
                shard = self._all.shards[place.shard[row]]
                places.append((shard, int(place.offset[row]), int(place.size[row])))
        self._reader.ahead(places)

    def verify(self) -> None:
        """Compare the shards with their checksums in the background."""
        self._reader.verify(self._all.shards)

    @property
    def identity(self) -> str:
        """Hash that changes with the clips."""
        return f"{self._all.hashes[INDEX]} {len(self)}"

    @property
    def scored(self) -> bool:
        """Whether a clip has a correspondence."""
        return not bool(np.isnan(self._all.correspondence[self._rows]).all())

    def without_captions(self) -> np.ndarray:
        """Return the numbers of the clips without captions."""
        place = self._all.places.get("captions")
        return np.flatnonzero(place.size[self._rows] == 0) if place else np.arange(len(self))

    def attributes(self, i: int) -> dict[str, float]:
        """Return the measured attributes of clip i."""
        values = self._all.attributes[self._rows[i]].tolist()
        return {n: x for n, x in zip(self._all.attribute_names, values, strict=True) if x == x}

    def duration_s(self, i: int) -> float:
        return float(self._all.duration_s[self._rows[i]])

    @property
    def longest_s(self) -> float:
        return float(self._all.duration_s[self._rows].max())

    def describe(self, i: int) -> str:
        """Return the video and start of clip i for a message, and which of its arrays are not finite."""
        line = self.index[i]
        bad = [name for name in self._arrays(i) if not self._read(i, name).isfinite().all()]
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
        quantile = float(self._all.correspondence[self._rows[i]])
        return None if math.isnan(quantile) else quantile


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
    folder: Path  # on this node, without the shards if they are elsewhere
    hashes: Mapping[str, str]  # of the files that describe the clips

    @property
    def max_duration_s(self) -> float:
        """Length of the longest clip, rounded down to half a second: the limit of a bundle's requests."""
        return int(2 * self.train.longest_s) / 2


def load_clips(
    place: Path | str,
    *,
    correspondence: bool = True,
    cache: Path | None = None,
    cache_gb: float | None = None,
) -> ClipSet:
    """Open a prepared folder, by default with the scores of `clipsynth correspondence` if there are any.

    Args:
        place: a folder, or a URL that fsspec reads.
        cache, cache_gb: where to keep copies of what a URL holds, and how many shards; see `open_remote`.

    Raises:
        ValueError: `place` is not a prepared folder, its statistics are not finite, or its `agreement.json`
            belongs to another index.
    """
    reader: ShardReader
    if isinstance(place, str) and "://" in place:
        folder, reader = open_remote(place, cache, cache_gb)
    else:
        folder, reader = Path(place), ShardReader(Path(place) / "shards")
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds no prepared clips; run: clipsynth prepare VIDEOS {folder}")
    index = open_index(folder, correspondence=correspondence)
    train, dev = (np.flatnonzero(index.dev == split) for split in (False, True))
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
    return ClipSet(
        Clips(reader, index, train if len(train) else dev),
        Clips(reader, index, dev if len(dev) else train),
        output_gain=output_gain,
        folder=folder,
        hashes=index.hashes,
        **statistics,
    )


def open_clips(recipe: RunRecipe) -> ClipSet:
    """Open the clips of a recipe, in memory if it says so."""
    cache = None if recipe.cache is None else Path(recipe.cache)
    clips = load_clips(recipe.clips, cache=cache, cache_gb=recipe.cache_gb)
    if recipe.in_memory:
        clips.train.keep()
        clips.dev.keep()
    return clips


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
