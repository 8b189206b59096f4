"""Measure how well the correspondence score finds exchanged sounds: area under the ROC curve.

    python -m benchmarks.model.correspondence data/demo [--seeds 3] [--set epochs=12] [--labels manifest.csv]

Labels (a CSV file,label,split) enter the report alone: a dog's sound with the image of another dog is not
wrong, so the area is also given over exchanges between classes.
"""

from __future__ import annotations

import csv
import json
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from training.correspondence.mismatch import exchange_sounds
from training.correspondence.network import CorrespondenceOptions, cross_fit
from training.correspondence.score import paired
from training.data.clips import ClipSet, load_clips


def area(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Return how often a wrong pair scores below a right one; ties count half. Both (N,)."""
    right = np.sort(scores[~wrong])
    above = len(right) - np.searchsorted(right, scores[wrong], side="right")
    ties = np.searchsorted(right, scores[wrong], side="right") - np.searchsorted(right, scores[wrong])
    return float((above + ties / 2).mean() / len(right))


def interval(scores: np.ndarray, wrong: np.ndarray, resamples: int = 1000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval over clips of `area`."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(scores), size=len(scores)) for _ in range(resamples)]
    areas = [area(scores[d], wrong[d]) for d in draws if 0 < wrong[d].sum() < len(d)]
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def measure(
    clips: ClipSet, sound_of: dict[str, str], labels: dict[str, str], options: CorrespondenceOptions
) -> dict[str, Any]:
    """Return the areas, the validation loss minus chance, and the seconds for one folder.

    `sound_of` names for each exchanged clip the clip whose sound it has; `labels` (by video) may be empty.
    """
    started = time.perf_counter()
    scores, _, loss = cross_fit(*paired(clips), options)
    found: dict[str, Any] = {"s": round(time.perf_counter() - started, 1), "loss": round(loss, 3)}
    index = clips.train.index
    wrong = np.array([line["key"] in sound_of for line in index])
    found |= _figures("all", scores.numpy(), wrong)
    if labels:
        label = {line["key"]: labels[line["video"]] for line in index}
        across = [label[sound_of.get(line["key"], line["key"])] != label[line["key"]] for line in index]
        kept = ~wrong | across
        found |= _figures("across", scores.numpy()[kept], np.array(across)[kept])
    return found


def _figures(name: str, scores: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    low, high = interval(scores, wrong)
    bounds = [round(low, 3), round(high, 3)]
    return {name: round(area(scores, wrong), 3), f"{name}_95": bounds, f"{name}_n": int(wrong.sum())}


def main(
    prepared: Path,
    seeds: int = 3,
    share: float = 0.2,
    overrides: Annotated[list[str], typer.Option("--set", help="of the network: epochs=12")] = (),
    labels_file: Annotated[Path | None, typer.Option("--labels")] = None,
) -> None:
    """Exchange a share of a prepared folder's sounds, and print how well the score finds them."""
    torch.set_num_threads(1)
    types = {f.name: type(f.default) for f in fields(CorrespondenceOptions)}
    chosen = dict(item.split("=", 1) for item in overrides)
    options = CorrespondenceOptions(**{name: types[name](value) for name, value in chosen.items()})
    labels: dict[str, str] = {}
    if labels_file:
        with labels_file.open(newline="") as f:
            rows = [row for row in csv.DictReader(f) if row["split"] == "train"]
        labels = {Path(row["file"]).name: row["label"] for row in rows}
    runs = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            sound_of = exchange_sounds(prepared, Path(folder), share=share, seed=seed)
            runs.append(measure(load_clips(Path(folder)), sound_of, labels, options))
        print(json.dumps({"seed": seed} | runs[-1]), flush=True)
    for name in ("all", "across") if labels else ("all",):
        areas = [run[name] for run in runs]
        print(f"{name}: {np.mean(areas):.3f} ({min(areas):.3f} to {max(areas):.3f} over {len(areas)} seeds)")


if __name__ == "__main__":
    typer.run(main)
