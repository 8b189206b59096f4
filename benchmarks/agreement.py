"""How well the agreement score finds swapped sounds: area under the ROC curve, on folders whose swaps are known.

Run: python -m benchmarks.agreement data/demo [--seeds 3] [--share 0.2] [--set epochs=12] [--labels manifest.csv]

The labels (CSV file,label,split) enter the report alone: a dog's sound with another dog's image is not wrong, so the area is also given over swaps
between classes.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.correspondence.mismatch import swap
from training.correspondence.network import MatchingOptions, cross_fit
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
    low, high = np.quantile(
        [area(scores[d], wrong[d]) for d in draws if 0 < wrong[d].sum() < len(d)], [0.025, 0.975]
    )
    return float(low), float(high)


def one(
    clips: ClipSet, sound_of: dict[str, str], labels: dict[str, str], options: MatchingOptions
) -> dict[str, Any]:
    """Return the areas, the held-out loss less chance, and the seconds of one swapped folder."""
    started = time.perf_counter()
    scores, _, loss = cross_fit(*paired(clips), options)
    found: dict[str, Any] = {"s": round(time.perf_counter() - started, 1), "loss": round(loss, 3)}
    index = clips.train.index
    wrong = np.array([line["key"] in sound_of for line in index])
    found |= _figures("all", scores.numpy(), wrong)
    if labels:
        videos = {line["key"]: line["video"] for line in index}
        label = [labels[line["video"]] for line in index]
        across = np.array(
            [
                w and labels[videos[sound_of[line["key"]]]] != own
                for line, w, own in zip(index, wrong, label, strict=True)
            ]
        )
        kept = ~wrong | across
        found |= _figures("across", scores.numpy()[kept], across[kept])
    return found


def _figures(name: str, scores: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    low, high = interval(scores, wrong)
    return {
        name: round(area(scores, wrong), 3),
        f"{name}_95": [round(low, 3), round(high, 3)],
        f"{name}_n": int(wrong.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--set", action="append", default=[], help="an option of the network: epochs=12")
    parser.add_argument("--labels", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    types = {f.name: type(f.default) for f in fields(MatchingOptions)}
    chosen = dict(item.split("=", 1) for item in arguments.set)
    options = MatchingOptions(**{name: types[name](value) for name, value in chosen.items()})
    labels: dict[str, str] = {}
    if arguments.labels:
        with arguments.labels.open(newline="") as f:
            labels = {
                Path(row["file"]).name: row["label"] for row in csv.DictReader(f) if row["split"] == "train"
            }
    runs = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            sound_of = swap(arguments.prepared, Path(folder), share=arguments.share, seed=seed)
            runs.append(one(load_clips(Path(folder)), sound_of, labels, options))
        print(json.dumps({"seed": seed} | runs[-1]), flush=True)
    for name in ("all", "across") if labels else ("all",):
        areas = [run[name] for run in runs]
        print(f"{name}: {np.mean(areas):.3f} ({min(areas):.3f} to {max(areas):.3f} over {len(areas)} seeds)")


if __name__ == "__main__":
    main()
