"""The memorisation test: whether a system's sounds lie nearer to training clips than recordings do that it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.report.table import percent, plain, table_line
from evaluation.run.scores import TableRow
from models.retrieval.copy_distance import relative

PERCENTILES = (1, 5, 50)
TRAIN = "training clips, to clips of other sources"


def spread(nearest: np.ndarray) -> dict[str, float]:
    """Return {"p1", "p5", "p50"} of distances (N,) to the nearest training clip."""
    return {f"p{p}": float(np.percentile(nearest, p)) for p in PERCENTILES}


def memorisation(rows: Sequence[TableRow], real: str, training_apart: np.ndarray) -> list[dict[str, Any]]:
    """Return the distribution of distances to the nearest training clip: of each row, of the validation clips, of training clips to others.

    Each says which `share` of its sounds is nearer than all but 1 % of the validation clips are, and is `suspect` where its own 1st percentile is; `relative` has the same of the
    distances over those to other training clips (`models.novelty.relative`), which are small where a sound is like one clip alone.

    Args:
        real: the row of the validation clips. training_apart: (S, T), of training clips to clips of other sources.
    """
    [lines] = [(_lowest(row.nearest), _lowest(row.relative)) for row in rows if row.system == real]
    compared = [(row.system, row.query, row.nearest, row.relative) for row in rows if len(row.nearest)]
    training = (TRAIN, "–", training_apart.min(1), relative(training_apart))
    return [
        {
            "system": system,
            "query": query,
            **spread(nearest),
            **_against(nearest, lines[0]),
            "relative": spread(stands_out) | _against(stands_out, lines[1]),
        }
        for system, query, nearest, stands_out in [*compared, training]
    ]


def _lowest(distances: np.ndarray) -> float:
    return float(np.percentile(distances, PERCENTILES[0]))


def _against(distances: np.ndarray, line: float) -> dict[str, Any]:
    return {"share": float(np.mean(distances < line)), "suspect": _lowest(distances) < line}


def memorisation_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return what `memorisation` found as a Markdown table."""
    names = [f"p{p}" for p in PERCENTILES]
    beyond = "nearer than 99 % of real"
    titles = [*names, beyond, f"relative, {names[0]}", f"relative, {beyond}"]
    lines = [
        table_line(["Distance to the nearest training clip", "query", *titles, ""]),
        "|---|---|" + "---:|" * len(titles) + "---|",
    ]
    for one in found:
        verdict = "nearer than recordings it never saw" if one["suspect"] else ""
        figures = [
            *(plain(one[name]) for name in names),
            percent(one["share"]),
            plain(one["relative"][names[0]]),
            percent(one["relative"]["share"]),
        ]
        lines.append(table_line([one["system"], one["query"], *figures, verdict]))
    return "\n".join(lines)
