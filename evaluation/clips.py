"""Labelled clips: videos with a class. The generator never sees these labels."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
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


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV with at least these columns.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    for column in columns:
        if not rows or column not in rows[0]:
            raise ValueError(f"{path} needs rows with a column {column!r}")
    return rows


def _label_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"there is no file of labels {path}; it needs the columns file, label and split")
    return read_csv(path, ("file", "label", "split"))


def read_sources(path: Path) -> dict[str, frozenset[str]]:
    """Return {file: the recordings that its sound was made of}.

    They are in the column audio_source, separated by semicolons; without it each clip is its own source.
    """
    rows = _label_rows(path)
    return {row["file"]: frozenset((row.get("audio_source") or row["file"]).split(";")) for row in rows}


def read_labels(path: Path, split: str) -> dict[str, str]:
    """Return {file: label} of one split of a CSV with the columns file, label and split.

    Raises:
        ValueError: a column is missing, or the split has no files.
    """
    labels = {row["file"]: row["label"] for row in _label_rows(path) if row["split"] == split}
    if not labels:
        raise ValueError(f"{path} has no file of split {split!r}")
    return labels


def read_clip(path: Path) -> RawClip:
    """Return sound and frames of one video.

    Raises:
        ValueError: the video is missing or cannot be used; the message names it.
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
    """Yield the labelled videos of `folder`; errors as `read_clip`."""
    for file, label in labels.items():
        raw = read_clip(folder / file)
        yield LabelledClip(file, label, raw.waveform, raw.frames[len(raw.frames) // 2].image)
