"""The sweep that all studies share: measure every point, then write the results as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

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
Point = TypeVar("Point")
Measured = TypeVar("Measured")


def _no_sentences(results: Any) -> list[str]:
    del results
    return []


@dataclass(frozen=True)
class Study(Generic[Point, Measured]):
    """A question to one or several bundles.

    Attributes:
        name: folder of the results below `StudyOptions.out`.
        points: what varies, as (key, point). The sounds of an `Entry` are made before it is measured.
            A generator holds one system in memory at a time.
        measure: returns the figures of a point.
        summarise: returns the results, as values that JSON can hold or figures, of {key: figures}.
        table: returns the Markdown of the results.
        settings: saved with the results, in addition to the options.
        verdicts: sentences about the results; saved with the settings.
    """

    name: str
    points: Iterable[tuple[Hashable, Point]]
    measure: Callable[[Point], Measured]
    summarise: Callable[[dict[Any, Measured]], Any]
    table: Callable[[Any], str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Callable[[Any], Sequence[str]] = _no_sentences


def run(context: StudyContext, study: Study[Point, Measured]) -> str:
    """Run a study, write `out/NAME/results.json` and `results.md`, and return the table."""
    measured = {}
    for key, point in study.points:
        if isinstance(point, Entry):
            make_sounds([point], context.options.batch_size)
        measured[key] = study.measure(point)
    results = study.summarise(measured)
    settings = {**asdict(context.options), **study.settings}
    if verdicts := study.verdicts(results):
        settings["verdicts"] = verdicts
    table = study.table(results)
    folder = context.options.out / study.name
    folder.mkdir(parents=True, exist_ok=True)
    everything = {"settings": _plain(settings), "results": _plain(results)}
    (folder / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
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
