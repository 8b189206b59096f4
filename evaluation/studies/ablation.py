"""What each remedy is worth: a bundle with it beside one without, line by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluation import evaluate as report
from evaluation.embedders.base import Classifier
from evaluation.interfaces import QueryKind, Sources
from evaluation.metrics.bootstrap import Figure, difference
from evaluation.report.table import cell, percent, plain
from evaluation.run.entries import make_sounds
from evaluation.run.rows import score
from evaluation.run.scores import Reference
from evaluation.studies.setting import AGREEMENT, FAD, SECONDS, Setting, table
from evaluation.systems.bundle import Bundle

ASKED: tuple[QueryKind, ...] = ("text", "image")
COVERAGE, COPIES = "coverage/classifier", "copies/mel"
SHOWN = (
    (AGREEMENT, "agreement", "↑", True),
    (FAD, "FAD", "↓", False),
    (COVERAGE, "coverage", "↑", True),
    (COPIES, "copies", "↓", True),
)


@dataclass(frozen=True)
class Remedy:
    """`having` and `lacking` it: bundles, each FOLDER or FOLDER?steps=12&guidance=8."""

    name: str
    having: str
    lacking: str


def parse_remedies(specs: Sequence[str]) -> list[Remedy]:
    """Return the remedies of "NAME=WITH,WITHOUT", or of YAML files [{name, with, without}, …].

    Raises:
        ValueError: neither, or two of one name.
    """
    found: list[Remedy] = []
    for spec in specs:
        if spec.endswith((".yaml", ".yml")):
            found += _read(Path(spec))
            continue
        name, _, both = spec.partition("=")
        having, _, lacking = both.partition(",")
        if not (name and having and lacking):
            raise ValueError(f"{spec!r} is neither NAME=WITH,WITHOUT nor a YAML file")
        found.append(Remedy(name, having, lacking))
    if not found or len({r.name for r in found}) < len(found):
        raise ValueError("remedies need names of their own, and there must be one")
    return found


def _read(path: Path) -> list[Remedy]:
    try:
        return [
            Remedy(str(r["name"]), str(r["with"]), str(r["without"]))
            for r in yaml.safe_load(path.read_text())
        ]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no list of name, with and without: {error!r}") from error


def ablation(setting: Setting, remedies: Sequence[Remedy]) -> str:
    """Write and return the table, a line for each remedy: with it, without it, the difference with its interval, and what it costs.

    Raises:
        ValueError: a bundle that cannot be used.
    """
    reference = make_reference(setting)
    measured = {
        place: measure(setting, reference, place)
        for place in dict.fromkeys(p for r in remedies for p in (r.having, r.lacking))
    }
    results = {
        r.name: {
            "with": measured[r.having],
            "without": measured[r.lacking],
            "difference": {
                kind: {
                    name: difference(figure, measured[r.lacking][kind][name])
                    for name, figure in measured[r.having][kind].items()
                    if name in {m for m, *_ in SHOWN} and name in measured[r.lacking][kind]
                }
                for kind in ASKED
            },
        }
        for r in remedies
    }
    bundles = {r.name: {"with": r.having, "without": r.lacking} for r in remedies}
    return setting.write("ablation", {"bundles": bundles}, results, _table(setting, results))


def make_reference(setting: Setting) -> Reference:
    """Return the split's own sounds, and the training clips for the search of copies."""
    o, bench = setting.options, setting.bench
    real, training = bench.real(), bench.training_clips(setting.training_labels())
    make_sounds([real, training], o.batch_size)
    options = report.EvaluateOptions(o.clips, o.queries, o.out, [], labels=o.labels, resamples=o.resamples)
    return report.make_reference(
        options, setting.plan, setting.judge, [Classifier(setting.judge)], [], real, training
    )


def measure(setting: Setting, reference: Reference, place: str) -> dict[str, dict[str, Figure]]:
    """Return {kind: figures} of a bundle, with seconds for one sound."""
    system = Bundle.load(place, place, Sources(setting.options.clips))
    found: dict[str, dict[str, Figure]] = {}
    for kind in ASKED:
        entry = setting.entry(system, kind)
        found[kind] = score(entry, reference, setting.plan, rtf_clips=0).figures | setting.seconds(entry)
    return found


def _table(setting: Setting, results: Mapping[str, Any]) -> str:
    head = [
        "Remedy",
        *(f"{title}, {kind} {arrow}" for _, title, arrow, _ in SHOWN for kind in ASKED),
        "s per sound",
    ]
    rows = []
    for name, row in results.items():
        cells = [_cell(row, kind, metric, share) for metric, _, _, share in SHOWN for kind in ASKED]
        rows.append([name, *cells, _cost(row)])
    notes = [setting.note(), "Each cell: with the remedy / without it; what it changes, with its interval."]
    return table(head, rows, notes)


def _cell(row: Mapping[str, Any], kind: str, metric: str, share: bool) -> str:
    having, lacking = row["with"][kind].get(metric), row["without"][kind].get(metric)
    if having is None or lacking is None:
        return "–"
    write = percent if share else plain
    return f"{write(having.value)} / {write(lacking.value)}; {cell(row['difference'][kind][metric], write)}"


def _cost(row: Mapping[str, Any]) -> str:
    having, lacking = (row[side]["image"].get(SECONDS) for side in ("with", "without"))
    return "–" if having is None or lacking is None else f"{plain(having.value)} / {plain(lacking.value)}"
