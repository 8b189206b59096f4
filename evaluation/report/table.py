"""Results as text: results.json, and a Markdown table like the paper's Table 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics.bootstrap import Figure
from evaluation.run.scores import TableRow

Gaps = Mapping[str, Mapping[str, Mapping[str, Figure]]]  # {system: {metric: {"gap", maybe "closed"}}}


def plain(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


@dataclass(frozen=True)
class Column:
    """A column: the name of its figure, its title with the better direction, and how a number is written."""

    figure: str
    title: str
    write: Callable[[float], str] = plain


def columns(
    rows: Sequence[TableRow],
    embedders: Sequence[str],
    images: str,
    relevance: str,
    judges: Sequence[str] = (),
) -> list[Column]:
    """Return the columns: distances by the first of `embedders`; FAD by the second and by `judges` too.

    Each embedder misses some differences between sounds, so one FAD is not enough.
    """
    headline = embedders[0]
    wanted = [
        *(Column(f"FAD/{name}", f"FAD/{name} ↓") for name in dict.fromkeys([*embedders[:2], *judges])),
        Column(f"FID/{images}", f"FID/{images} ↓"),
        Column(f"FAD∞/{headline}", f"FAD∞/{headline} ↓"),
        Column(f"KAD/{headline}", f"KAD/{headline} ↓"),
        Column("class_accuracy@1/classifier", "class_accuracy@1/classifier ↑", percent),
        Column("class_accuracy@5/classifier", "class_accuracy@5/classifier ↑", percent),
        *(Column(f"class_accuracy@1/{name}", f"class_accuracy@1/{name} ↑", percent) for name in judges),
        Column(f"relevance/{relevance}", f"relevance/{relevance} ↑"),
        Column(f"coverage/{headline}", f"coverage/{headline} ↑", percent),
        Column("copies/mel", "copies/mel ↓", percent),
        Column("RTF", "RTF ↓"),
    ]
    return [c for c in wanted if any(c.figure in row.figures for row in rows)]


def cell(figure: Figure | None, write: Callable[[float], str] = plain) -> str:
    """Return a figure with its interval; a dash for None."""
    if figure is None:
        return "–"
    low, high = write(figure.low).removesuffix(" %"), write(figure.high)
    return f"{write(figure.value)} ({low}–{high})" if figure.low != figure.high else write(figure.value)


def markdown(rows: Sequence[TableRow], shown: Sequence[Column], notes: Sequence[str]) -> str:
    """Return the table with a line for each row, and `notes` below it."""
    mark = {True: "✓", False: "×"}
    head = ["Model", "Generative", "Unlabeled data only", "Training query", "Test query"]
    lines = [
        [
            *(row.system, mark[row.generative], mark[row.unlabeled], row.training_query, row.query),
            *(cell(row.figures.get(c.figure), c.write) for c in shown),
            str(row.sounds),
        ]
        for row in rows
    ]
    return markdown_table([*head, *(c.title for c in shown), "N"], lines, "lccllr", notes)


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "lr", notes: Sequence[str] = ()
) -> str:
    """Return a Markdown table, with notes below it.

    `align` has l, c or r for each column; its last letter repeats.
    """
    marks = {"l": "---", "c": ":-:", "r": "---:"}
    rule = "|" + "|".join(marks[a] for a in align.ljust(len(head), align[-1])) + "|"
    first, *others = (f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (head, *rows))
    return "\n".join([first, rule, *others, *(["", *notes] if notes else [])])


def gap_table(gaps: Gaps) -> str:
    """Return the text gaps as a Markdown table; a dash if the baseline may have no gap to close."""
    rows = []
    for system, by_metric in gaps.items():
        for metric, found in by_metric.items():
            closed = found.get("closed")
            if closed is not None and not np.isfinite(closed.low):
                closed = None
            rows.append([system, metric, cell(found["gap"]), cell(closed, lambda v: f"{v:.0f} %")])
    return markdown_table(["Model", "metric", "text − image", "gap closed"], rows, "llr")


def as_json(settings: Mapping[str, Any], rows: Sequence[TableRow], gaps: Gaps) -> dict[str, Any]:
    """Return all measurements, for results.json."""
    names = ("system", "query", "training_query", "generative", "unlabeled", "sounds")
    return {
        "settings": dict(settings),
        "rows": [
            {name: getattr(row, name) for name in names}
            | {"figures": {name: figure.as_dict() for name, figure in row.figures.items()}}
            | {"per_class": row.per_class, "checks": row.checks}
            for row in rows
        ],
        "text_gap": {
            system: {
                metric: {name: figure.as_dict() for name, figure in found.items()}
                for metric, found in by_metric.items()
            }
            for system, by_metric in gaps.items()
        },
    }
