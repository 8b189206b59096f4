"""The step-quality curve: how good sounds are after few steps, against many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from evaluation.interfaces import QueryKind
from evaluation.metrics.bootstrap import Figure
from evaluation.report.table import cell, percent
from evaluation.studies.setting import AGREEMENT, FAD, KAD, SECONDS, Setting, table
from evaluation.studies.variants import with_manifest
from evaluation.systems.bundle import Bundle, load_pipeline
from models.schedule import time_at

STEPS = (4, 6, 8, 10, 12, 16, 25, 50, 100)
TOLERANCE = 0.05
ASKED: tuple[QueryKind, ...] = ("text", "image")


def row_forwards(
    steps: int, guidance: float, interval: tuple[float, float], shift: float = 1.0, *, told: bool = False
) -> int:
    """Return how often the network sees one sound: once a step, twice where guidance is on and the network not told of it."""
    low, high = interval
    times = [time_at(n / steps, shift) for n in range(steps)]
    return steps + (sum(low <= t < high for t in times) if guidance > 1 and not told else 0)


def as_good(few: Mapping[str, Figure], many: Mapping[str, Figure]) -> bool:
    """Return whether FAD is at most 5 % above and agreement at most 5 % below that of many steps."""
    return (
        few[FAD].value <= (1 + TOLERANCE) * many[FAD].value
        and few[AGREEMENT].value >= (1 - TOLERANCE) * many[AGREEMENT].value
    )


def fewest(by_steps: Mapping[int, Mapping[str, Mapping[str, Figure]]]) -> int:
    """Return the fewest steps of {steps: {kind: figures}} that are as good as the most for every kind of query."""
    most = by_steps[max(by_steps)]
    return min(n for n, found in by_steps.items() if all(as_good(found[kind], most[kind]) for kind in most))


def steps(
    setting: Setting,
    bundle: Path,
    counts: Sequence[int] = STEPS,
    *,
    guidances: Sequence[float] = (),
    intervals: Sequence[tuple[float, float]] = (),
    rescales: Sequence[float] = (),
    shifts: Sequence[float] = (),
) -> str:
    """Write and return the table: a row for each number of steps, guidance scale, interval of guidance, share of rescaling and time shift; the bundle's where none is given.

    Raises:
        ValueError: no numbers of steps, or a bundle that cannot be used.
    """
    if not counts:
        raise ValueError("at least one number of steps is needed")
    pipe = load_pipeline(str(bundle))
    m = pipe.manifest
    rows: list[dict[str, Any]] = []
    verdicts = []
    for guidance, interval, rescale, shift in product(
        guidances or [m.guidance_scale],
        intervals or [m.guidance_interval],
        rescales or [0.0],
        shifts or [m.time_shift],
    ):
        told = rescale == 0 and pipe.condition_encoder.takes_guidance(guidance, interval)
        by_steps: dict[int, dict[str, dict[str, Figure]]] = {}
        for n in sorted(set(counts)):
            scheduled = with_manifest(pipe, guidance_interval=interval, time_shift=shift)
            system = Bundle(f"{n} steps", scheduled, steps=n, guidance=guidance, rescale=rescale)
            by_steps[n] = {kind: setting.figures(system, kind) for kind in ASKED}
            rows.append(
                {"steps": n, "guidance": guidance, "interval": interval, "rescale": rescale, **by_steps[n]}
                | {"shift": shift, "row_forwards": row_forwards(n, guidance, interval, shift, told=told)}
            )
        verdicts.append(
            f"Guidance {guidance:g} in {interval[0]:g}–{interval[1]:g}, rescaled by {rescale:g}, shift {shift:g}: {fewest(by_steps)} steps are the fewest with FAD and agreement within "
            f"{100 * TOLERANCE:g} % of {max(by_steps)} steps, for texts and images."
        )
    return setting.write(
        "steps",
        {"bundle": str(bundle), "version": m.version, "verdicts": verdicts},
        rows,
        _table(setting, rows, verdicts),
    )


def _table(setting: Setting, rows: Sequence[Mapping[str, Any]], verdicts: Sequence[str]) -> str:
    figures = (("FAD ↓", FAD, None), ("KAD ↓", KAD, None), ("agreement ↑", AGREEMENT, percent))
    titles = [f"{title.split()[0]}, {kind} {title.split()[1]}" for title, _, _ in figures for kind in ASKED]
    lines = [
        [
            f"{row['steps']}, {row['guidance']:g}, {row['interval'][0]:g}–{row['interval'][1]:g}, {row['rescale']:g}, {row['shift']:g}",
            *(
                cell(row[kind][name], *([write] if write else []))
                for _, name, write in figures
                for kind in ASKED
            ),
            cell(row["image"].get(SECONDS)),
            str(row["row_forwards"]),
        ]
        for row in rows
    ]
    head = ["Steps, guidance, interval, rescale, shift", *titles, "s per sound", "row-forwards"]
    return table(head, lines, [*verdicts, "", setting.note()])
