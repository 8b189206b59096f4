"""The sweep that all studies share: measure every point, then write the results as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evaluation.metrics.bootstrap import Figure
from evaluation.report.table import cell, percent, plain
from evaluation.run.rows import Entry, make_sounds
from evaluation.studies.context import CLASS_ACCURACY, FAD, KAD, SECONDS, StudyContext

COVERAGE, COPIES = "coverage/classifier", "copies/mel"
# {figure: (title, better direction, how a number is written)}
METRICS: dict[str, tuple[str, str, Callable[[float], str]]] = {
    FAD: ("FAD", "↓", plain),
    KAD: ("KAD", "↓", plain),
    CLASS_ACCURACY: ("class accuracy", "↑", percent),
    COVERAGE: ("coverage", "↑", percent),
    COPIES: ("copies", "↓", percent),
    SECONDS: ("s per sound", "", plain),
}
Key = TypeVar("Key", bound=Hashable)
Point = TypeVar("Point")
Measured = TypeVar("Measured")


def sweep(
    context: StudyContext, points: Iterable[tuple[Key, Point]], measure: Callable[[Point], Measured]
) -> dict[Key, Measured]:
    """Return {key: figures} of (key, point); the sounds of an `Entry` are made before it is measured.

    Points of a generator are loaded one at a time.
    """
    measured = {}
    for key, point in points:
        if isinstance(point, Entry):
            make_sounds([point], context.options.batch_size)
        measured[key] = measure(point)
    return measured


def save(context: StudyContext, name: str, results: Any, table: str, **settings: Any) -> str:
    """Write `out/NAME/results.json` and `results.md`; return the Markdown `table`.

    Args:
        results: values that JSON can hold, or figures.
        settings: saved with the results, in addition to the options.
    """
    folder = context.options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    everything = {"settings": asdict(context.options) | settings, "results": results}
    (folder / "results.json").write_text(json.dumps(_plain(everything), indent=1) + "\n")
    (folder / "results.md").write_text(table + "\n")
    return table


def metric_title(metric: str, kind: str) -> str:
    """Return the head of the column of a figure for one kind of query."""
    title, better, _ = METRICS[metric]
    return f"{title}, {kind} {better}"


def metric_cell(figures: Mapping[str, Figure], metric: str) -> str:
    """Return a figure with its interval; a dash if it is missing."""
    return cell(figures.get(metric), METRICS[metric][2])


def _plain(value: Any) -> Any:
    """Return a value of JSON: figures as value and interval, paths as text, numpy's numbers as Python's."""
    if isinstance(value, Figure):
        return _plain(value.as_dict())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return value.as_posix()
    return value.item() if isinstance(value, np.generic) else value
