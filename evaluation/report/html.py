"""The results as one self-contained HTML file: figures, bars by class, players and spectrograms.

It contains training and validation clips, so only people with access to the data may have it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import soundfile
import torch
from PIL import Image

from evaluation.embedders.mel_images import RANGE
from evaluation.interfaces import SAMPLE_RATE
from evaluation.report.table import Column, cell
from evaluation.run.scores import TableRow
from models.audio.level import level
from models.audio.mel import MelSpectrogram

STYLE = Path(__file__).with_name("html.css")
TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Player:
    """A sound and its spectrogram as data URIs."""

    sound: str
    image: str
    caption: str


@dataclass(frozen=True)
class Players:
    """Players of a row: one per class, the ten of least relevance, the ten nearest to training clips."""

    by_class: list[Player]
    worst: list[Player]
    closest: list[Player]


def mp3_uri(waveform: np.ndarray) -> str:
    """Return (T,) as a data URI, at a peak of 0.5 so that listeners can compare rows."""
    file = io.BytesIO()
    soundfile.write(file, level(waveform)[0], SAMPLE_RATE, format="MP3", compression_level=0.8)
    return "data:audio/mpeg;base64," + base64.b64encode(file.getvalue()).decode()


def spectrogram_uri(waveform: np.ndarray) -> str:
    """Return the log-mel of (T,) as a data URI: a quarter of its frames, low bands at the bottom."""
    low, high = RANGE
    mel = MelSpectrogram()(torch.from_numpy(level(waveform)[0])[None])[0].numpy()[::4]
    grey = (255 * ((mel.T[::-1] - low) / (high - low)).clip(0, 1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "WEBP", quality=50)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def player(waveform: np.ndarray, caption: str) -> Player:
    return Player(mp3_uri(waveform), spectrogram_uri(waveform), caption)


def intervals(rows: Sequence[TableRow], column: Column) -> list[dict[str, object]]:
    """Return one figure of all rows as dots with their intervals, in per cent of the axis."""
    shown = [(row, row.figures[column.figure]) for row in rows if column.figure in row.figures]
    low = min(min(f.low for _, f in shown), 0.0)
    per_cent = 100 / max(max(f.high for _, f in shown) - low, 1e-9)
    return [
        {
            "row": row,
            "text": cell(f, column.write),
            "low": round((f.low - low) * per_cent, 2),
            "value": round((f.value - low) * per_cent, 2),
            "width": round((f.high - f.low) * per_cent, 2),
        }
        for row, f in shown
    ]


def page(
    rows: Sequence[TableRow],
    shown: Sequence[Column],
    notes: Sequence[str],
    examples: Sequence[Players],
    gaps: str,
    copied: str,
) -> str:
    """Return the page; `examples` are the players of each row, `gaps` and `copied` are tables as text."""
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text())
    return template.render(
        style=STYLE.read_text(),
        notes=notes,
        intervals=[(column.title, intervals(rows, column)) for column in shown],
        figures=[{name: cell(figure) for name, figure in row.figures.items()} for row in rows],
        checks=[{name: f"{value:.3g}" for name, value in row.checks.items()} for row in rows],
        rows=rows,
        examples=examples,
        gaps=gaps,
        copied=copied,
    )
