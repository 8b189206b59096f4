"""The sounds of an index's clips, from the training videos or from a prepared folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.media.shards import ShardReader
from models.media.video import read_video
from models.retrieval.clip_index import Index


class ClipAudio(Protocol):
    """Gives the sounds of clips that an index describes."""

    def missing(self, index: Index) -> str | None:
        """Return the first video of the index whose sound is missing."""

    def sound(self, clip: Mapping[str, Any]) -> np.ndarray:
        """Return a clip's sound (T,), at its own level.

        Raises:
            ValueError: it is missing, or cannot be read.
        """


class PreparedAudio:
    """The sounds in a prepared folder."""

    def __init__(self, folder: Path) -> None:
        """Open a prepared folder.

        Raises:
            ValueError: `folder` is not a prepared folder.
        """
        if not (folder / "index.jsonl").is_file():
            raise ValueError(f"{folder} holds no prepared clips")
        self.folder, self._reader = folder, ShardReader(folder / "shards")
        lines = map(json.loads, (folder / "index.jsonl").read_text().splitlines())
        self._lines = {(line["video"], line["start_s"]): line for line in lines}

    def missing(self, index: Index) -> str | None:
        there = ((c["video"], (c["video"], c["start_s"]) in self._lines) for c in index.clips)
        return next((video for video, is_there in there if not is_there), None)

    def sound(self, clip: Mapping[str, Any]) -> np.ndarray:
        line = self._lines.get((clip["video"], clip["start_s"]))
        if line is None:
            raise ValueError(f"{self.folder} has no clip of {clip['video']} at {clip['start_s']} s")
        waveform = self._reader.array(line, "waveform")
        return np.asarray(waveform / 32767 / line["gain"], np.float32)


class VideoAudio:
    """The sounds of the videos in a folder."""

    def __init__(self, folder: Path, sample_rate: int) -> None:
        self.folder, self.sample_rate = folder, sample_rate

    def missing(self, index: Index) -> str | None:
        there = ((c["video"], (self.folder / c["video"]).is_file()) for c in index.clips)
        return next((video for video, is_there in there if not is_there), None)

    def sound(self, clip: Mapping[str, Any]) -> np.ndarray:
        path = self.folder / clip["video"]
        if not path.is_file():
            raise ValueError(f"{path}: no such video")
        whole = read_video(path, sample_rate=self.sample_rate).waveform
        start = round(clip["start_s"] * self.sample_rate)
        return whole[start : start + round(clip["duration_s"] * self.sample_rate)]


def open_audio(folder: Path, sample_rate: int) -> ClipAudio:
    """Return the sounds of a folder: a prepared folder if it has an index and shards, else videos.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    is_prepared = (folder / "index.jsonl").is_file() and (folder / "shards").is_dir()
    return PreparedAudio(folder) if is_prepared else VideoAudio(folder, sample_rate)
