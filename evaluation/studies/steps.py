"""Quality against the number of sampling steps, and the fewest steps that are good enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

from evaluation.metrics.bootstrap import Figure
from evaluation.report.table import markdown_table
from evaluation.run.rows import Entry
from evaluation.studies.context import CLASS_ACCURACY, FAD, KAD, SECONDS, TEXT_AND_IMAGE, StudyContext
from evaluation.studies.study import metric_cell, metric_title, save, sweep
from evaluation.studies.variants import with_manifest
from evaluation.systems.bundle import Bundle, load_pipeline
from models.schedule import time_at

STEPS = (4, 6, 8, 10, 12, 16, 25, 50, 100)
TOLERANCE = 0.05
SHOWN = (FAD, KAD, CLASS_ACCURACY)


@dataclass(frozen=True)
class Schedule:
    """One choice of guidance scale, guidance interval and time shift."""

    guidance: float
    interval: tuple[float, float]
    shift: float


def row_forwards(
    steps: int, guidance: float, interval: tuple[float, float], shift: float = 1.0, *, distilled: bool = False
) -> int:
    """Return how often the network runs for one sound.

    Once a step, and twice in the steps with guidance, unless guidance is distilled into the network.
    """
    low, high = interval
    times = [time_at(n / steps, shift) for n in range(steps)]
    return steps + (sum(low <= t < high for t in times) if guidance > 1 and not distilled else 0)


def good_enough(few: Mapping[str, Figure], many: Mapping[str, Figure]) -> bool:
    """Return whether FAD is at most 5 % above, and class accuracy at most 5 % below, that of many steps."""
    return (
        few[FAD].value <= (1 + TOLERANCE) * many[FAD].value
        and few[CLASS_ACCURACY].value >= (1 - TOLERANCE) * many[CLASS_ACCURACY].value
    )


def fewest(by_steps: Mapping[int, Mapping[str, Mapping[str, Figure]]]) -> int:
    """Return the fewest steps of {steps: {kind: figures}} that are good enough for every kind of query."""
    most = by_steps[max(by_steps)]
    return min(
        n for n, found in by_steps.items() if all(good_enough(found[kind], most[kind]) for kind in most)
    )


def steps(
    context: StudyContext,
    bundle: Path,
    counts: Sequence[int] = STEPS,
    *,
    guidances: Sequence[float] = (),
    intervals: Sequence[tuple[float, float]] = (),
    shifts: Sequence[float] = (),
) -> str:
    """Write and return the table: a row for each schedule and number of steps.

    The schedules are all combinations of the given values; the bundle's own value where none is given.

    Raises:
        ValueError: no number of steps is given, or the bundle cannot be used.
    """
    if not counts:
        raise ValueError("at least one number of steps is needed")
    pipe = load_pipeline(str(bundle))
    m = pipe.manifest
    values = guidances or [m.guidance_scale], intervals or [m.guidance_interval], shifts or [m.time_shift]
    grid = [(Schedule(*choice), n) for choice in product(*values) for n in sorted(set(counts))]

    def points() -> Iterator[tuple[tuple[Schedule, int, str], Entry]]:
        for s, n in grid:
            own = with_manifest(pipe, guidance_interval=s.interval, time_shift=s.shift, num_inference_steps=n)
            system = Bundle(f"{n} steps", own, steps=n, guidance=s.guidance)
            for kind in TEXT_AND_IMAGE:
                yield (s, n, kind), context.entry(system, kind)

    def forwards(s: Schedule, n: int) -> int:
        distilled = pipe.condition_encoder.takes_guidance(s.guidance, s.interval)
        return row_forwards(n, s.guidance, s.interval, s.shift, distilled=distilled)

    measured = sweep(context, points(), context.figures)
    rows = [
        {"steps": n, **vars(s), "row_forwards": forwards(s, n)}
        | {kind: measured[s, n, kind] for kind in TEXT_AND_IMAGE}
        for s, n in grid
    ]
    verdicts = _verdicts(rows)
    table = _table(context, rows, verdicts)
    return save(context, "steps", rows, table, bundle=bundle, version=m.version, verdicts=verdicts)


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each schedule: its fewest steps that are good enough."""
    sentences = []
    for schedule, group in groupby(rows, _schedule):
        by_steps = {row["steps"]: {str(kind): row[kind] for kind in TEXT_AND_IMAGE} for row in group}
        low, high = schedule.interval
        sentences.append(
            f"Guidance {schedule.guidance:g} in {low:g}–{high:g}, shift {schedule.shift:g}: "
            f"{fewest(by_steps)} steps are the fewest with FAD and class accuracy within "
            f"{100 * TOLERANCE:g} % of {max(by_steps)} steps, for texts and images."
        )
    return sentences


def _schedule(row: Mapping[str, Any]) -> Schedule:
    return Schedule(row["guidance"], row["interval"], row["shift"])


def _table(context: StudyContext, rows: Sequence[Mapping[str, Any]], verdicts: list[str]) -> str:
    columns = [(metric, kind) for metric in SHOWN for kind in TEXT_AND_IMAGE]
    titles = [metric_title(metric, kind) for metric, kind in columns]
    lines = []
    for row in rows:
        s = _schedule(row)
        low, high = s.interval
        name = f"{row['steps']}, {s.guidance:g}, {low:g}–{high:g}, {s.shift:g}"
        cells = [metric_cell(row[kind], metric) for metric, kind in columns]
        lines.append([name, *cells, metric_cell(row["image"], SECONDS), str(row["row_forwards"])])
    head = ["Steps, guidance, interval, shift", *titles, "s per sound", "row-forwards"]
    return markdown_table(head, lines, notes=[*verdicts, "", context.note()])
