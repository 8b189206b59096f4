"""Do sounds have what was asked of them? Each attribute is asked for at several levels, measured on what came out, and the two are compared by rank.

Within a query and a seed, whose levels all begin with the same noise: levels are quantiles among the query's own neighbours, so a high-pitched drum may lie below a low-pitched flute.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from evaluation.interfaces import SAMPLE_RATE, QueryKind
from evaluation.metrics.bootstrap import Figure, bootstrap, difference, draw_picks
from evaluation.plan import Sample
from evaluation.report.table import cell, percent
from evaluation.studies.setting import Setting, table
from evaluation.studies.variants import with_manifest
from evaluation.systems.bundle import Bundle, load_pipeline
from models.audio.attributes import by_name, measure

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
MIDDLE = 0.5


@dataclass(frozen=True)
class AskedRow:
    """One sound: `asked` is the level of `attribute`, `measured` its value (`models.attributes.by_name`), None where the sound has none, such as a hiss no pitch.

    `query` is what all its levels have in common; `heard` is the class that the judge hears.
    """

    attribute: str
    query: str
    label: str
    asked: float
    measured: float | None
    heard: str


@dataclass(frozen=True)
class Finding:
    """What the rows of one attribute say, with 95 % intervals over queries.

    Attributes:
        rho: Spearman's coefficient of asked and measured, the mean of the queries'.
        lacking: share of sounds that have no value of the attribute.
        leakage: class agreement at the lowest and highest level less that in the middle; None without a level in the middle.
    """

    attribute: str
    sounds: int
    rho: Figure
    lacking: float
    leakage: Figure | None


def attributes(
    setting: Setting,
    bundle: Path,
    *,
    names: Sequence[str] = (),
    levels: Sequence[float] = LEVELS,
    each: int = 1,
    reach: float | None = None,
    steps: int | None = None,
) -> str:
    """Write and return the table: for each attribute Spearman's coefficient, by text and image together.

    Args:
        names: attributes, each asked for by itself; all that the bundle takes by default.
        each: clips of each class whose phrase and image are the queries.
        reach: beyond the clips near a query, in place of the bundle's own (`models.character`).

    Raises:
        ValueError: the bundle takes no attributes, or not one of these.
    """
    pipe = load_pipeline(str(bundle))
    if reach is not None:
        pipe = with_manifest(pipe, attribute_reach=reach)
    names = names or pipe.attributes
    if not names or not set(names) <= set(pipe.attributes):
        raise ValueError(f"{bundle} takes the attributes {', '.join(pipe.attributes) or 'none'}")
    rows = [
        row
        for name in names
        for level in levels
        for row in _rows(
            setting, Bundle(f"{name} {level:g}", pipe, attributes={name: level}, steps=steps), each
        )
    ]
    found = findings(rows, resamples=setting.options.resamples)
    settings = {"bundle": str(bundle), "version": pipe.manifest.version, "levels": levels, "each": each}
    results = {"findings": [vars(one) for one in found], "rows": [vars(row) for row in rows]}
    return setting.write("attributes", settings, results, _table(setting, found, each))


def _samples(setting: Setting, kind: QueryKind, each: int) -> list[Sample]:
    """Return the samples of the first `each` clips of each class."""
    taken: dict[str, list[str]] = defaultdict(list)
    for clip in setting.plan.clips:
        taken[clip.label] += [clip.file] if len(taken[clip.label]) < each else []
    wanted = {file for files in taken.values() for file in files}
    return [s for s in setting.plan.samples(kind) if s.query.clip in wanted]


def _rows(setting: Setting, system: Bundle, each: int) -> list[AskedRow]:
    samples = _samples(setting, "text", each) + _samples(setting, "image", each)
    [(name, level)] = system.attributes.items()
    store, heard = setting.heard(system, samples)
    return [
        AskedRow(
            name,
            sample.stem,
            sample.query.label,
            level,
            by_name(measure(sound, SAMPLE_RATE)).get(name),
            setting.judge.labels[place],
        )
        for sample, sound, place in zip(samples, store.read(samples), heard.argmax(1), strict=True)
    ]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's coefficient, 0 where all of one side are equal."""
    ranks = rankdata(a), rankdata(b)
    if min(len(a), *(np.ptp(r) for r in ranks)) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def findings(rows: Sequence[AskedRow], *, resamples: int = 1000) -> list[Finding]:
    """Return what the rows say of each attribute; the unit that intervals resample is the query.

    A query of which fewer than three sounds have the attribute says nothing of its rank, and counts as 0.
    """
    by_attribute: dict[str, dict[str, list[AskedRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_attribute[row.attribute][row.query].append(row)
    return [_finding(name, queries, resamples) for name, queries in by_attribute.items()]


def _finding(attribute: str, queries: Mapping[str, list[AskedRow]], resamples: int) -> Finding:
    groups = list(queries.values())
    picks = draw_picks([""] * len(groups), resamples)
    rho = np.array([_rho(group) for group in groups])
    made = [row for group in groups for row in group]
    return Finding(
        attribute,
        len(made),
        bootstrap(lambda places: float(rho[places].mean()), picks),
        sum(row.measured is None for row in made) / len(made),
        _leakage(groups, picks),
    )


def _rho(rows: Sequence[AskedRow]) -> float:
    pairs = [(row.asked, row.measured) for row in rows if row.measured is not None]
    return spearman([a for a, _ in pairs], [b for _, b in pairs]) if len(pairs) >= 3 else 0.0


def _leakage(groups: Sequence[Sequence[AskedRow]], picks: np.ndarray) -> Figure | None:
    levels = {row.asked for group in groups for row in group}
    if MIDDLE not in levels or len(levels) < 2:
        return None

    def agreement(wanted: set[float]) -> Figure:
        shares = [[row.heard == row.label for row in group if row.asked in wanted] for group in groups]
        means = np.array([np.mean(share) for share in shares])
        return bootstrap(lambda places: float(means[places].mean()), picks)

    return difference(agreement({min(levels), max(levels)}), agreement({MIDDLE}))


def _table(setting: Setting, found: Sequence[Finding], each: int) -> str:
    rows: list[list[Any]] = [
        [
            one.attribute,
            str(one.sounds),
            cell(one.rho),
            f"{100 * one.lacking:.0f} %",
            cell(one.leakage, percent),
        ]
        for one in found
    ]
    o = setting.options
    notes = [
        f"The phrase and the image of {each} clip(s) of each class ({o.split}), each with {o.seeds} seed(s) and every level. In brackets: 95 % of {o.resamples} bootstrap resamples of queries.",
    ]
    head = [
        "Attribute",
        "sounds",
        "Spearman, asked ~ measured ↑",
        "without it",
        "class agreement, extremes − middle",
    ]
    return table(head, rows, notes)
