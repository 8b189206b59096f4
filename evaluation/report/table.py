"""Results as text: results.json, and a Markdown table shaped as the paper's Table 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics.bootstrap import Figure
from evaluation.run.scores import TableRow


def plain(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


@dataclass(frozen=True)
class Column:
    """A column: the `figure` it shows, its title with the direction that is better, and how a number is written."""

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
    """Return the columns of the table: distances by the first of `embedders`.

    FAD also by the second and by each of `judges`, because no embedder hears everything.
    """
    headline = embedders[0]
    wanted = [
        *(Column(f"FAD/{name}", f"FAD/{name} ↓") for name in dict.fromkeys([*embedders[:2], *judges])),
        Column(f"FID/{images}", f"FID/{images} ↓"),
        Column(f"FAD∞/{headline}", f"FAD∞/{headline} ↓"),
        Column(f"KAD/{headline}", f"KAD/{headline} ↓"),
        Column("agreement@1/classifier", "agreement@1/classifier ↑", percent),
        Column("agreement@5/classifier", "agreement@5/classifier ↑", percent),
        *(Column(f"agreement@1/{name}", f"agreement@1/{name} ↑", percent) for name in judges),
        Column(f"relevance/{relevance}", f"relevance/{relevance} ↑"),
        Column(f"coverage/{headline}", f"coverage/{headline} ↑", percent),
        Column("copies/mel", "copies/mel ↓", percent),
        Column("RTF", "RTF ↓"),
    ]
    return [c for c in wanted if any(c.figure in row.figures for row in rows)]


def cell(figure: Figure | None, write: Callable[[float], str] = plain) -> str:
    """Return a figure with its interval, or a dash."""
    if figure is None:
        return "–"
    low, high = write(figure.low).removesuffix(" %"), write(figure.high)
    return f"{write(figure.value)} ({low}–{high})" if figure.low != figure.high else write(figure.value)


def markdown(rows: Sequence[TableRow], shown: Sequence[Column], notes: Sequence[str]) -> str:
    """Return the table, a row each, and `notes` below it."""
    yes = {True: "✓", False: "×"}
    head = [
        "Model",
        "Generative",
        "Unlabeled data only",
        "Training query",
        "Test query",
        *(c.title for c in shown),
        "N",
    ]
    lines = [table_line(head), "|---|:-:|:-:|---|---|" + "---:|" * (len(shown) + 1)]
    for row in rows:
        begin = [row.system, yes[row.generative], yes[row.unlabeled], row.training_query, row.query]
        lines.append(
            table_line([*begin, *(cell(row.figures.get(c.figure), c.write) for c in shown), str(row.sounds)])
        )
    return "\n".join([*lines, "", *notes])


def table_line(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def gap_table(gaps: Mapping[str, Mapping[str, Mapping[str, Figure]]]) -> str:
    """Return {system: {metric: {"gap": …, "closed": …}}} as a table."""
    lines = [table_line(["Model", "metric", "text − image", "gap closed"]), "|---|---|---:|---:|"]
    for system, by_metric in gaps.items():
        for metric, found in by_metric.items():
            closed = found.get("closed")
            if closed is not None and not np.isfinite(closed.low):
                closed = None  # the baseline's own gap may be none
            lines.append(
                table_line([system, metric, cell(found["gap"]), cell(closed, lambda v: f"{v:.0f} %")])
            )
    return "\n".join(lines)


def as_json(
    settings: Mapping[str, Any],
    rows: Sequence[TableRow],
    gaps: Mapping[str, Mapping[str, Mapping[str, Figure]]],
) -> dict[str, Any]:
    """Return everything that was measured, for results.json."""
    return {
        "settings": dict(settings),
        "rows": [
            {
                "system": row.system,
                "query": row.query,
                "training_query": row.training_query,
                "generative": row.generative,
                "unlabeled": row.unlabeled,
                "sounds": row.sounds,
                "figures": {name: figure.as_dict() for name, figure in row.figures.items()},
                "per_class": row.per_class,
                "checks": row.checks,
            }
            for row in rows
        ],
        "text_gap": {
            system: {
                metric: {k: f.as_dict() for k, f in found.items()} for metric, found in by_metric.items()
            }
            for system, by_metric in gaps.items()
        },
    }
