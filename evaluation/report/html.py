"""The results as one HTML file that needs nothing else: figures with intervals, bars by class, players and spectrograms.

It holds sounds, those of training and validation clips among them: for the eyes and ears of whoever may have the data.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
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
    """Players of a row's sounds: one of each class, the ten that the judge finds least of what was asked in, the ten nearest to a training clip."""

    by_class: list[str]
    worst: list[str]
    closest: list[str]


def mp3_uri(waveform: np.ndarray) -> str:
    """Return (T,) as a data URI, at a peak of 0.5 so that rows can be compared."""
    file = io.BytesIO()
    soundfile.write(file, level(waveform)[0], SAMPLE_RATE, format="MP3", compression_level=0.8)
    return "data:audio/mpeg;base64," + base64.b64encode(file.getvalue()).decode()


def spectrogram_uri(waveform: np.ndarray) -> str:
    """Return the log-mel of (T,) as an image of a quarter of its frames, low bands at the bottom."""
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
        f'<audio controls preload="none" src="{mp3_uri(waveform)}"></audio><figcaption>{escape(caption)}</figcaption></figure>'
    )


def bars(per_class: dict[str, float]) -> str:
    """Return agreement by class as bars."""
    return (
        '<div class="bars">'
        + "".join(
            f'<span>{escape(label)}</span><meter min="0" max="1" value="{share:.3f}"></meter><span>{100 * share:.0f} %</span>'
            for label, share in per_class.items()
        )
        + "</div>"
    )


def intervals(rows: Sequence[TableRow], column: Column) -> str:
    """Return one figure of all rows as dots with their intervals."""
    shown = [(row, row.figures[column.figure]) for row in rows if column.figure in row.figures]
    low = min(min(f.low for _, f in shown), 0.0)
    span = max(max(f.high for _, f in shown) - low, 1e-9)
    lines = []
    for row, f in shown:
        left, dot, width = (100 * v / span for v in (f.low - low, f.value - low, f.high - f.low))
        lines.append(
            f"<span>{escape(row.system)} · {row.query}</span><i><b style='left:{left:.2f}%;width:{width:.2f}%'></b>"
            f"<u style='left:{dot:.2f}%'></u></i><span>{cell(f, column.write)}</span>"
        )
    return f"<h3>{escape(column.title)}</h3><div class='dots'>{''.join(lines)}</div>"


def table(rows: Sequence[TableRow], names: Sequence[str]) -> str:
    """Return every figure of every row."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("system", "query", *names))
    body = "".join(
        f"<tr><td>{escape(row.system)}</td><td>{row.query}</td>"
        + "".join(f"<td>{cell(row.figures.get(name))}</td>" for name in names)
        + "</tr>"
        for row in rows
    )
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def checks_table(rows: Sequence[TableRow]) -> str:
    """Return durations, levels and silence of every row."""
    names = list(dict.fromkeys(name for row in rows for name in row.checks))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("system", "query", *names))
    body = "".join(
        f"<tr><td>{escape(row.system)}</td><td>{row.query}</td>"
        + "".join(f"<td>{row.checks[n]:.3g}</td>" if n in row.checks else "<td>–</td>" for n in names)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _sounds(title: str, players: Sequence[str]) -> str:
    """Return players behind a title; nothing where there are none."""
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
    """Return the page; `examples` are the players of each row, `gaps` and `copied` tables as text."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    sections = "".join(
        f"<section><h2>{escape(row.system)} · {row.query} query</h2>"
        + (f"<h3>agreement@1/classifier by class</h3>{bars(row.per_class)}" if row.per_class else "")
        + _sounds("One sound of each class", its.by_class)
        + _sounds("The ten that the judge finds least convincing", its.worst)
        + _sounds("The ten nearest to a training clip", its.closest)
        + "</section>"
        for row, its in zip(rows, examples, strict=True)
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>CLIPSynth: evaluation</title><style>{STYLE.read_text()}</style><h1>Evaluation</h1>"
        + "".join(f"<p>{escape(note)}</p>" for note in notes)
        + "".join(intervals(rows, column) for column in shown)
        + f"<h2>All figures</h2>{table(rows, names)}<h2>Text gap</h2><pre>{escape(gaps)}</pre>"
        + f"<h2>Nearness to training clips</h2><pre>{escape(copied)}</pre>"
        + f"<h2>Duration, loudness, silence</h2>{checks_table(rows)}{sections}</html>\n"
    )
