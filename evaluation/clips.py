"""Labelled clips: the folder of videos that judges are trained and checked on. The generator never sees these labels."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.video import VideoError, read_video

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class LabelledClip:
    """`waveform` (T,) float32 at 16 kHz and the middle `frame` of one video, with its class."""

    file: str
    label: str
    waveform: np.ndarray
    frame: Image.Image


def read_labels(path: Path, split: str) -> dict[str, str]:
    """Return {file: label} of one split of a CSV with the columns file, label and split.

    Raises:
        ValueError: a column is missing, or the split has no files.
    """
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    for column in ("file", "label", "split"):
        if not rows or column not in rows[0]:
            raise ValueError(f"{path} needs rows with a column {column!r}")
    labels = {row["file"]: row["label"] for row in rows if row["split"] == split}
    if not labels:
        raise ValueError(f"{path} has no file of split {split!r}")
    return labels


def read_clips(folder: Path, labels: dict[str, str]) -> Iterator[LabelledClip]:
    """Yield the labelled videos of `folder`.

    Raises:
        ValueError: a video is missing or cannot be used; the message names it.
    """
    for file, label in labels.items():
        path = folder / file
        if not path.is_file():
            raise ValueError(f"{path}: no such video")
        try:
            raw = read_video(path, sample_rate=SAMPLE_RATE)
        except VideoError as error:
            raise ValueError(f"{path}: {error}") from error
        yield LabelledClip(file, label, raw.waveform, raw.frames[len(raw.frames) // 2].picture)
