"""The results as one self-contained HTML file: figures, bars by class, players and spectrograms.

It contains training and validation clips, so only people with access to the data may have it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

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


@dataclass(frozen=True)
class Players:
    """Players of a row: one per class, the ten of least relevance, the ten nearest to training clips."""

    by_class: list[str]
    worst: list[str]
    closest: list[str]


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


def player(waveform: np.ndarray, caption: str) -> str:
    """Return one sound with its spectrogram."""
    return (
        f'<figure><img src="{spectrogram_uri(waveform)}" alt="spectrogram">'
        f'<audio controls preload="none" src="{mp3_uri(waveform)}"></audio>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def bars(per_class: dict[str, float]) -> str:
    """Return class accuracy by class as bars."""
    lines = [
        f'<span>{escape(label)}</span><meter min="0" max="1" value="{share:.3f}"></meter>'
        f"<span>{100 * share:.0f} %</span>"
        for label, share in per_class.items()
    ]
    return f'<div class="bars">{"".join(lines)}</div>'


def intervals(rows: Sequence[TableRow], column: Column) -> str:
    """Return one figure of all rows as dots with their intervals."""
    shown = [(row, row.figures[column.figure]) for row in rows if column.figure in row.figures]
    low = min(min(f.low for _, f in shown), 0.0)
    span = max(max(f.high for _, f in shown) - low, 1e-9)
    lines = []
    for row, f in shown:
        left, dot, width = (100 * v / span for v in (f.low - low, f.value - low, f.high - f.low))
        lines.append(
            f"<span>{escape(row.system)} · {row.query}</span>"
            f"<i><b style='left:{left:.2f}%;width:{width:.2f}%'></b><u style='left:{dot:.2f}%'></u></i>"
            f"<span>{cell(f, column.write)}</span>"
        )
    return f"<h3>{escape(column.title)}</h3><div class='dots'>{''.join(lines)}</div>"


def table(rows: Sequence[TableRow], cells: Sequence[Mapping[str, str]]) -> str:
    """Return a table of {column: cell} for each row; a dash for a missing cell."""
    names = list(dict.fromkeys(name for one in cells for name in one))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("system", "query", *names))
    body = "".join(
        f"<tr><td>{escape(row.system)}</td><td>{row.query}</td>"
        + "".join(f"<td>{one.get(name, '–')}</td>" for name in names)
        + "</tr>"
        for row, one in zip(rows, cells, strict=True)
    )
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def _sounds(title: str, players: Sequence[str]) -> str:
    """Return players in a section that the reader opens; empty without players."""
    if not players:
        return ""
    return f"<details><summary>{title}</summary><div class='sounds'>{''.join(players)}</div></details>"


def page(
    rows: Sequence[TableRow],
    shown: Sequence[Column],
    notes: Sequence[str],
    examples: Sequence[Players],
    gaps: str,
    copied: str,
) -> str:
    """Return the page; `examples` are the players of each row, `gaps` and `copied` are tables as text."""
    figures = [{name: cell(figure) for name, figure in row.figures.items()} for row in rows]
    checks = [{name: f"{value:.3g}" for name, value in row.checks.items()} for row in rows]
    sections = "".join(
        f"<section><h2>{escape(row.system)} · {row.query} query</h2>"
        + (f"<h3>class_accuracy@1/classifier by class</h3>{bars(row.per_class)}" if row.per_class else "")
        + _sounds("One sound of each class", its.by_class)
        + _sounds("The ten of least relevance by the judge", its.worst)
        + _sounds("The ten nearest to a training clip", its.closest)
        + "</section>"
        for row, its in zip(rows, examples, strict=True)
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>CLIPSynth: evaluation</title><style>{STYLE.read_text()}</style><h1>Evaluation</h1>"
        + "".join(f"<p>{escape(note)}</p>" for note in notes)
        + "".join(intervals(rows, column) for column in shown)
        + f"<h2>All figures</h2>{table(rows, figures)}<h2>Text gap</h2><pre>{escape(gaps)}</pre>"
        + f"<h2>Nearness to training clips</h2><pre>{escape(copied)}</pre>"
        + f"<h2>Duration, loudness, silence</h2>{table(rows, checks)}{sections}</html>\n"
    )
