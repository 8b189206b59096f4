"""Do sounds have what was asked of them? Each attribute is asked for at several levels, measured on what came out, and the two are compared by rank.

    python -m evaluation.attribute_study BUNDLE --queries queries.json [--clips LABELLED_VIDEOS] [--judge FOLDER] [--out rows.json]

Within a query: levels are quantiles among its own neighbours, so a high-pitched drum may lie below a low-pitched flute.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from evaluation.bundles import load_pipeline
from evaluation.classifier import SoundClassifier
from evaluation.clips import read_clips, read_labels
from evaluation.interval import Figure, bootstrap, difference, draw_picks
from evaluation.systems import SAMPLE_RATE, Query
from models.attributes import by_name, measure
from models.pipeline import ClipSynthPipeline

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
MIDDLE = 0.5


@dataclass(frozen=True)
class Row:
    """One sound: `asked` is the level of `attribute`, `measured` its value (`models.attributes.by_name`), None where the sound has none, such as a hiss no pitch.

    `query` is the place of the query, `heard` the class that a judge hears, None without a judge.
    """

    attribute: str
    query: int
    label: str
    kind: str
    seed: int
    asked: float
    measured: float | None
    heard: str | None = None


@dataclass(frozen=True)
class Finding:
    """What the rows of one attribute say, with 95 % intervals over queries.

    Attributes:
        rho: Spearman's coefficient of asked and measured, the mean of the queries'.
        lacking: share of sounds that have no value of the attribute.
        leakage: class agreement at the lowest and highest level less that in the middle; None without a judge, or without a level in the middle.
    """

    attribute: str
    sounds: int
    rho: Figure
    lacking: float
    leakage: Figure | None


def run(
    pipeline: ClipSynthPipeline,
    queries: Sequence[Query],
    levels: Sequence[float] = LEVELS,
    seeds: Sequence[int] = (0, 1),
    *,
    attributes: Sequence[str] | None = None,
    judge: SoundClassifier | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Iterator[Row]:
    """Make the sounds and yield a row for each; all levels of a query begin with the same noise of each seed.

    Args:
        attributes: those that are asked for, each by itself; all that the bundle takes by default.

    Raises:
        ValueError: the bundle does not take one of them.
    """
    for attribute in pipeline.attributes if attributes is None else attributes:
        for place, query in enumerate(queries):
            for level in levels:
                sounds = pipeline(
                    query.prompt,
                    query.image,
                    attributes={attribute: level},
                    duration_s=query.duration_s,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    num_waveforms_per_prompt=len(seeds),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                ).audios
                heard = judge.classify(sounds) if judge else [None] * len(sounds)
                for seed, sound, label in zip(seeds, sounds, heard, strict=True):
                    value = by_name(measure(sound, SAMPLE_RATE)).get(attribute)
                    yield Row(attribute, place, query.label, query.kind, seed, level, value, label)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's coefficient, 0 where all of one side are equal."""
    ranks = rankdata(a), rankdata(b)
    if min(len(a), *(np.ptp(r) for r in ranks)) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def findings(rows: Sequence[Row], *, resamples: int = 1000) -> list[Finding]:
    """Return what the rows say of each attribute; the unit that intervals resample is the query.

    A query of which fewer than three sounds have the attribute says nothing of its rank, and counts as 0.
    """
    by_attribute: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_attribute[row.attribute][row.query].append(row)
    return [_finding(name, queries, resamples) for name, queries in by_attribute.items()]


def _finding(attribute: str, queries: Mapping[int, list[Row]], resamples: int) -> Finding:
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


def _rho(rows: Sequence[Row]) -> float:
    pairs = [(row.asked, row.measured) for row in rows if row.measured is not None]
    return spearman([a for a, _ in pairs], [b for _, b in pairs]) if len(pairs) >= 3 else 0.0


def _leakage(groups: Sequence[Sequence[Row]], picks: np.ndarray) -> Figure | None:
    levels = {row.asked for group in groups for row in group}
    if MIDDLE not in levels or len(levels) < 2 or any(row.heard is None for group in groups for row in group):
        return None

    def agreement(wanted: set[float]) -> Figure:
        shares = [[row.heard == row.label for row in group if row.asked in wanted] for group in groups]
        means = np.array([np.mean(share) for share in shares])
        return bootstrap(lambda places: float(means[places].mean()), picks)

    return difference(agreement({min(levels), max(levels)}), agreement({MIDDLE}))


def to_markdown(found: Sequence[Finding]) -> str:
    """Return a table; without findings, a line that says so."""
    if not found:
        return "The bundle takes no attributes.\n"
    lines = [
        "| attribute | sounds | Spearman asked ~ measured | without it | class agreement, extremes - middle |"
    ]
    lines.append("|---|---|---|---|---|")
    for one in found:
        leakage = "–" if one.leakage is None else _text(one.leakage)
        lines.append(
            f"| {one.attribute} | {one.sounds} | {_text(one.rho)} | {100 * one.lacking:.0f} % | {leakage} |"
        )
    return "\n".join(lines) + "\n"


def _text(figure: Figure) -> str:
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


# ------------------------------------------------------------------------------------------------- command


def read_queries(queries: Path, clips: Path | None, per_class: int, duration_s: float) -> list[Query]:
    """Return of each class `per_class` texts and, where there is a folder of labelled videos, as many pictures of its validation clips."""
    phrases: dict[str, list[str]] = json.loads(queries.read_text())["classes"]
    found = [
        Query(label, "", prompt=text, duration_s=duration_s)
        for label, texts in phrases.items()
        for text in texts[:per_class]
    ]
    if clips is None:
        return found
    wanted: dict[str, str] = {}
    taken: dict[str, int] = defaultdict(int)
    for file, label in read_labels(clips / "manifest.csv", "validation").items():
        if label in phrases and taken[label] < per_class:
            taken[label] += 1
            wanted[file] = label
    pictures = read_clips(clips, wanted)
    return [*found, *(Query(c.label, c.file, image=c.frame, duration_s=duration_s) for c in pictures)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and write its table to standard output."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.attribute_study", description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--queries", type=Path, required=True, help='JSON {"classes": {label: [phrase, …]}}')
    parser.add_argument("--clips", type=Path, help="folder of labelled videos, for picture queries")
    parser.add_argument("--judge", type=Path, help="folder of `clipsynth evaluate` with its classifier")
    parser.add_argument("--per-class", type=int, default=1, help="texts and pictures of each class")
    parser.add_argument("--levels", type=float, nargs="+", default=LEVELS)
    parser.add_argument("--seeds", type=int, default=2, help="sounds of each query and level")
    parser.add_argument("--attributes", nargs="+", help="all that the bundle takes by default")
    parser.add_argument("--duration", type=float, default=4.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--out", type=Path, help="file for the rows, as JSON")
    chosen = parser.parse_args(arguments)
    rows = list(
        run(
            load_pipeline(chosen.bundle),
            read_queries(chosen.queries, chosen.clips, chosen.per_class, chosen.duration),
            chosen.levels,
            range(chosen.seeds),
            attributes=chosen.attributes,
            judge=SoundClassifier.load(chosen.judge) if chosen.judge else None,
            steps=chosen.steps,
            guidance=chosen.guidance_scale,
        )
    )
    if chosen.out:
        chosen.out.write_text(json.dumps([asdict(row) for row in rows]) + "\n")
    sys.stdout.write(to_markdown(findings(rows)))


if __name__ == "__main__":
    main()
