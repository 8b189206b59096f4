"""Attributes of sounds: target levels against measured values, compared by rank.

Ranks are compared within a query and a seed: their sounds start from the same noise. A level is a
quantile among the query's own neighbours, so a high-pitched drum may be lower than a low-pitched flute.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from evaluation.interfaces import SAMPLE_RATE
from evaluation.metrics.bootstrap import Figure, bootstrap, difference, draw_picks
from evaluation.plan import Sample
from evaluation.report.table import cell, markdown_table, percent
from evaluation.run.rows import Entry
from evaluation.studies.context import TEXT_AND_IMAGE, StudyContext
from evaluation.studies.study import save, sweep
from evaluation.systems.bundle import Bundle, load_pipeline
from models.audio.attributes import by_name, measure

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
MIDDLE = 0.5


@dataclass(frozen=True)
class AttributeRow:
    """One sound.

    Attributes:
        query: shared by the sounds of all levels.
        label: class of the query. predicted: the judge's most probable class.
        target: level of `attribute`, 0 to 1.
        measured: value by `models.audio.attributes`; None if the sound has none (a hiss has no pitch).
    """

    attribute: str
    query: str
    label: str
    target: float
    measured: float | None
    predicted: str


@dataclass(frozen=True)
class AttributeFinding:
    """The figures of one attribute, with 95 % intervals over queries.

    Attributes:
        rho: Spearman's coefficient of target and measured value, the mean over queries.
        missing: share of sounds without a value of the attribute.
        leakage: class accuracy at the lowest and highest level minus that at the middle level; None without
            a middle level.
    """

    attribute: str
    sounds: int
    rho: Figure
    missing: float
    leakage: Figure | None


def attributes(
    context: StudyContext,
    bundle: Path,
    *,
    names: Sequence[str] = (),
    levels: Sequence[float] = LEVELS,
    clips_per_class: int = 1,
    steps: int | None = None,
) -> str:
    """Write and return the table: Spearman's coefficient of each attribute, over text and image queries.

    Args:
        names: attributes, each requested alone; all that the bundle supports by default.
        clips_per_class: clips of each class; their phrases and images are the queries.

    Raises:
        ValueError: the bundle does not support the attributes.
    """
    pipe = load_pipeline(str(bundle))
    names = names or pipe.attributes
    if not names or not set(names) <= set(pipe.attributes):
        raise ValueError(f"{bundle} supports the attributes {', '.join(pipe.attributes) or 'none'}")
    samples = _samples(context, clips_per_class)

    def points() -> Iterator[tuple[tuple[str, float], Entry]]:
        for name in names:
            for level in levels:
                system = Bundle(f"{name} {level:g}", pipe, attributes={name: level}, steps=steps)
                yield (name, level), context.entry_for(system, samples)

    measured = sweep(context, points(), partial(_rows, context))
    rows = [row for found in measured.values() for row in found]
    found = findings(rows, resamples=context.options.resamples)
    results = {"findings": [vars(one) for one in found], "rows": [vars(row) for row in rows]}
    settings = {"bundle": bundle, "version": pipe.manifest.version, "levels": levels}
    table = _table(context, found, clips_per_class)
    return save(context, "attributes", results, table, **settings, clips_per_class=clips_per_class)


def _samples(context: StudyContext, clips_per_class: int) -> list[Sample]:
    """Return the text and image samples of the first clips of each class."""
    taken: dict[str, list[str]] = defaultdict(list)
    for clip in context.plan.clips:
        taken[clip.label].append(clip.file)
    wanted = {file for files in taken.values() for file in files[:clips_per_class]}
    return [s for kind in TEXT_AND_IMAGE for s in context.plan.samples(kind) if s.query.clip in wanted]


def _rows(context: StudyContext, entry: Entry) -> list[AttributeRow]:
    assert isinstance(entry.system, Bundle)
    [(name, level)] = entry.system.attributes.items()
    predicted = entry.judged_features.probabilities(context.judge).argmax(1)
    rows = []
    for sample, sound, n in zip(entry.judged, entry.store.read(entry.judged), predicted, strict=True):
        value = by_name(measure(sound, SAMPLE_RATE)).get(name)
        label = context.judge.labels[n]
        rows.append(AttributeRow(name, sample.stem, sample.query.label, level, value, label))
    return rows


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's coefficient; 0 if all values of one side are equal."""
    ranks = rankdata(a), rankdata(b)
    if min(len(a), *(np.ptp(r) for r in ranks)) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def findings(rows: Sequence[AttributeRow], *, resamples: int = 1000) -> list[AttributeFinding]:
    """Return the figures of each attribute; intervals resample queries.

    A query with fewer than three sounds that have the attribute counts as a coefficient of 0.
    """
    by_attribute: dict[str, dict[str, list[AttributeRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_attribute[row.attribute][row.query].append(row)
    return [_finding(name, list(queries.values()), resamples) for name, queries in by_attribute.items()]


def _finding(attribute: str, groups: Sequence[list[AttributeRow]], resamples: int) -> AttributeFinding:
    picks = draw_picks([""] * len(groups), resamples)
    rho = np.array([_rho(group) for group in groups])
    rows = [row for group in groups for row in group]
    return AttributeFinding(
        attribute,
        len(rows),
        bootstrap(lambda places: float(rho[places].mean()), picks),
        sum(row.measured is None for row in rows) / len(rows),
        _leakage(groups, picks),
    )


def _rho(rows: Sequence[AttributeRow]) -> float:
    pairs = [(row.target, row.measured) for row in rows if row.measured is not None]
    return spearman([a for a, _ in pairs], [b for _, b in pairs]) if len(pairs) >= 3 else 0.0


def _leakage(groups: Sequence[Sequence[AttributeRow]], picks: np.ndarray) -> Figure | None:
    levels = {row.target for group in groups for row in group}
    if MIDDLE not in levels or len(levels) < 2:
        return None

    def class_accuracy(wanted: set[float]) -> Figure:
        hits = [[row.predicted == row.label for row in group if row.target in wanted] for group in groups]
        means = np.array([np.mean(share) for share in hits])
        return bootstrap(lambda places: float(means[places].mean()), picks)

    return difference(class_accuracy({min(levels), max(levels)}), class_accuracy({MIDDLE}))


def _table(context: StudyContext, found: Sequence[AttributeFinding], clips_per_class: int) -> str:
    rows = [
        [f.attribute, str(f.sounds), cell(f.rho), f"{100 * f.missing:.0f} %", cell(f.leakage, percent)]
        for f in found
    ]
    o = context.options
    notes = [
        f"The phrase and the image of {clips_per_class} clip(s) of each class ({o.split}), each with "
        f"{o.seeds} seed(s) and every level. In brackets: 95 % of {o.resamples} resamples of queries."
    ]
    head = ["Attribute", "sounds", "Spearman, target ~ measured ↑", "without it"]
    return markdown_table([*head, "class accuracy, extremes − middle"], rows, notes=notes)
