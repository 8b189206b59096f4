"""Labelled clips: the folder of videos that judges are trained and checked on. The generator never sees these labels."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.interfaces import SAMPLE_RATE
from models.media.video import RawClip, VideoError, read_video


@dataclass(frozen=True)
class LabelledClip:
    """`waveform` (T,) float32 at 16 kHz and the middle `frame` of one video, with its class."""

    file: str
    label: str
    waveform: np.ndarray
    frame: Image.Image


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"there is no file of labels {path}; it needs the columns file, label and split")
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def read_sources(path: Path) -> dict[str, frozenset[str]]:
    """Return {file: what its sound was made of}: the column audio_source, with semicolons between; without one a clip is its own source."""
    return {
        row["file"]: frozenset((row.get("audio_source") or row["file"]).split(";")) for row in _rows(path)
    }


def read_labels(path: Path, split: str) -> dict[str, str]:
    """Return {file: label} of one split of a CSV with the columns file, label and split.

    Raises:
        ValueError: a column is missing, or the split has no files.
    """
    rows = _rows(path)
    for column in ("file", "label", "split"):
        if not rows or column not in rows[0]:
            raise ValueError(f"{path} needs rows with a column {column!r}")
    labels = {row["file"]: row["label"] for row in rows if row["split"] == split}
    if not labels:
        raise ValueError(f"{path} has no file of split {split!r}")
    return labels


def read_clip(path: Path) -> RawClip:
    """Return sound and frames of one video.

    Raises:
        ValueError: it is missing or cannot be used; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such video")
    try:
        return read_video(path, sample_rate=SAMPLE_RATE)
    except VideoError as error:
        raise ValueError(f"{path}: {error}") from error


def read_sound(path: Path) -> np.ndarray:
    """Return the sound (T,) of one video; errors as `read_clip`."""
    return read_clip(path).waveform


def read_clips(folder: Path, labels: dict[str, str]) -> Iterator[LabelledClip]:
    """Yield the labelled videos of `folder`.

    Raises:
        ValueError: a video is missing or cannot be used; the message names it.
    """
    for file, label in labels.items():
        raw = read_clip(folder / file)
        yield LabelledClip(file, label, raw.waveform, raw.frames[len(raw.frames) // 2].image)
