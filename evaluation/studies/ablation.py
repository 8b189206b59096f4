"""The effect of each change to training: a bundle with it against a bundle without it, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluation.interfaces import QueryKind, Sources
from evaluation.metrics.bootstrap import Figure, difference
from evaluation.report.table import cell, markdown_table, plain
from evaluation.run.rows import Entry, score
from evaluation.studies.context import CLASS_ACCURACY, FAD, SECONDS, TEXT_AND_IMAGE, StudyContext
from evaluation.studies.study import COPIES, COVERAGE, METRICS, metric_title, save, sweep
from evaluation.systems.bundle import Bundle

SHOWN = (CLASS_ACCURACY, FAD, COVERAGE, COPIES)
SIDES = ("with", "without")


@dataclass(frozen=True)
class Remedy:
    """A change to training. `bundles`: with it and without it, each FOLDER or FOLDER?steps=12&guidance=8."""

    name: str
    bundles: tuple[str, str]


def parse_remedies(specs: Sequence[str]) -> list[Remedy]:
    """Return the remedies of "NAME=WITH,WITHOUT", or of YAML files [{name, with, without}, …].

    Raises:
        ValueError: a text of another form, a file that cannot be read, no remedy, or two of one name.
    """
    found: list[Remedy] = []
    for spec in specs:
        if spec.endswith((".yaml", ".yml")):
            found += _read(Path(spec))
            continue
        name, _, both = spec.partition("=")
        with_it, _, without = both.partition(",")
        if not (name and with_it and without):
            raise ValueError(f"{spec!r} is neither NAME=WITH,WITHOUT nor a YAML file")
        found.append(Remedy(name, (with_it, without)))
    if not found or len({r.name for r in found}) < len(found):
        raise ValueError("at least one remedy is needed, and no two of the same name")
    return found


def _read(path: Path) -> list[Remedy]:
    try:
        rows = yaml.safe_load(path.read_text())
        return [Remedy(str(row["name"]), (str(row["with"]), str(row["without"]))) for row in rows]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no list of name, with and without: {error!r}") from error


def ablation(context: StudyContext, remedies: Sequence[Remedy]) -> str:
    """Write and return the table: for each remedy the figures with it, without it, and the difference.

    Raises:
        ValueError: a bundle cannot be used.
    """
    places = dict.fromkeys(place for remedy in remedies for place in remedy.bundles)

    def points() -> Iterator[tuple[tuple[str, str], Entry]]:
        for place in places:
            system = Bundle.load(place, place, Sources(context.options.clips))
            for kind in TEXT_AND_IMAGE:
                yield (place, kind), context.entry(system, kind)

    def measure(entry: Entry) -> dict[str, Figure]:
        row = score(entry, context.reference(search_copies=True), context.plan, rtf_clips=0)
        return row.figures | context.seconds(entry)

    measured = sweep(context, points(), measure)
    results: dict[str, Any] = {}
    for remedy in remedies:
        row = {
            side: {kind: measured[place, kind] for kind in TEXT_AND_IMAGE}
            for side, place in zip(SIDES, remedy.bundles, strict=True)
        }
        results[remedy.name] = row | {"difference": _differences(row["with"], row["without"])}
    bundles = {r.name: dict(zip(SIDES, r.bundles, strict=True)) for r in remedies}
    return save(context, "ablation", results, _table(context, results), bundles=bundles)


def _differences(
    with_it: Mapping[QueryKind, Mapping[str, Figure]], without: Mapping[QueryKind, Mapping[str, Figure]]
) -> dict[str, dict[str, Figure]]:
    """Return {kind: {metric: with - without}} of the metrics that both sides have."""
    return {
        kind: {m: difference(a[m], b[m]) for m in SHOWN if m in a and m in b}
        for kind, a, b in ((kind, with_it[kind], without[kind]) for kind in TEXT_AND_IMAGE)
    }


def _table(context: StudyContext, results: Mapping[str, Any]) -> str:
    columns = [(metric, kind) for metric in SHOWN for kind in TEXT_AND_IMAGE]
    head = ["Remedy", *(metric_title(metric, kind) for metric, kind in columns), "s per sound"]
    rows = [
        [name, *(_cell(row, kind, metric) for metric, kind in columns), _seconds(row)]
        for name, row in results.items()
    ]
    notes = [context.note(), "Each cell: with the remedy / without it; the difference with its interval."]
    return markdown_table(head, rows, notes=notes)


def _cell(row: Mapping[str, Any], kind: str, metric: str) -> str:
    with_it, without = (row[side][kind].get(metric) for side in SIDES)
    if with_it is None or without is None:
        return "–"
    write = METRICS[metric][2]
    change = cell(row["difference"][kind][metric], write)
    return f"{write(with_it.value)} / {write(without.value)}; {change}"


def _seconds(row: Mapping[str, Any]) -> str:
    found = [row[side]["image"].get(SECONDS) for side in SIDES]
    return "–" if None in found else " / ".join(plain(figure.value) for figure in found)
