"""The memorisation test: whether a system's sounds lie nearer to training clips than recordings do that it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.score import Row
from evaluation.table import percent, plain, table_line

PERCENTILES = (1, 5, 50)
TRAIN = "training clips, to clips of other sources"


def spread(nearest: np.ndarray) -> dict[str, float]:
    """Return {"p1", "p5", "p50"} of distances (N,) to the nearest training clip."""
    return {f"p{p}": float(np.percentile(nearest, p)) for p in PERCENTILES}


def memorisation(rows: Sequence[Row], real: str, training: np.ndarray) -> list[dict[str, Any]]:
    """Return the distribution of distances to the nearest training clip: of each row, of the validation clips, of training clips to others.

    Each says which `share` of its sounds is nearer than all but 1 % of the validation clips are, and is `suspect` where its own 1st percentile is.

    Args:
        real: the row of the validation clips. training: (T,), of training clips to the nearest of another source.
    """
    [line] = [np.percentile(row.nearest, PERCENTILES[0]) for row in rows if row.system == real]
    compared = [(row.system, row.query, row.nearest) for row in rows if len(row.nearest)]
    return [
        {
            "system": system,
            "query": query,
            **spread(nearest),
            "share": float(np.mean(nearest < line)),
            "suspect": bool(np.percentile(nearest, PERCENTILES[0]) < line),
        }
        for system, query, nearest in [*compared, (TRAIN, "–", training)]
    ]


def memorisation_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return what `memorisation` found as a Markdown table."""
    names = [f"p{p}" for p in PERCENTILES]
    lines = [
        table_line(
            ["Distance to the nearest training clip", "query", *names, "nearer than 99 % of real", ""]
        ),
        "|---|---|" + "---:|" * (len(names) + 1) + "---|",
    ]
    for one in found:
        verdict = "nearer than recordings it never saw" if one["suspect"] else ""
        figures = [plain(one[name]) for name in names]
        lines.append(table_line([one["system"], one["query"], *figures, percent(one["share"]), verdict]))
    return "\n".join(lines)
