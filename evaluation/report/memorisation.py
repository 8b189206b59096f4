"""The memorisation test: are a system's sounds nearer to training clips than unseen recordings are?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.report.table import markdown_table, percent, plain
from evaluation.run.scores import TableRow
from models.retrieval.copy_distance import relative

PERCENTILES = (1, 5, 50)
TRAIN = "training clips, to clips of other sources"


def spread(nearest: np.ndarray) -> dict[str, float]:
    """Return {"p1", "p5", "p50"} of distances (N,) to the nearest training clip."""
    return {f"p{p}": float(np.percentile(nearest, p)) for p in PERCENTILES}


def memorisation(rows: Sequence[TableRow], real: str, training_apart: np.ndarray) -> list[dict[str, Any]]:
    """Return the distances to the nearest training clip: of each row, and of training clips to others.

    `share` is the share of sounds nearer than the 1st percentile of the validation clips; a row is
    `suspect` if its own 1st percentile is. `relative` has the same for distances divided by those to other
    training clips (`models.retrieval.copy_distance.relative`), which are small if a sound is like one clip
    alone.

    Args:
        real: name of the row of the validation clips.
        training_apart: (S, T), distances of training clips to clips of other sources.
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
    names = [f"p{p}" for p in PERCENTILES]
    nearer = "nearer than 99 % of real"
    head = ["Distance to the nearest training clip", "query", *names, nearer]
    head += [f"relative, {names[0]}", f"relative, {nearer}", ""]
    rows = [
        [
            *(one["system"], one["query"], *(plain(one[name]) for name in names), percent(one["share"])),
            *(plain(one["relative"][names[0]]), percent(one["relative"]["share"])),
            "nearer than unseen recordings" if one["suspect"] else "",
        ]
        for one in found
    ]
    return markdown_table(head, rows, "ll" + "r" * 6 + "l")
