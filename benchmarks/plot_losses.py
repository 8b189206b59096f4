"""Draw the dev loss of runs over steps, from the `dev.tsv` that training writes.

Run: python benchmarks/plot_losses.py docs/dev_loss.png CLIPSynth=runs/demo CLIPSynth-Text=runs/demo-text
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, _, run in (argument.partition("=") for argument in arguments.runs):
        with (Path(run) / "denoiser" / "dev.tsv").open(newline="") as f:
            points = [(int(step), float(loss)) for step, loss, _ in csv.reader(f, delimiter="\t")]
        best_step, best = min(points, key=lambda point: point[1])
        axes.plot(*zip(*points, strict=True), label=f"{name}: {best:.3f} at step {best_step}")
    axes.set(xlabel="step", ylabel="flow loss on dev", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(arguments.image, dpi=100)


if __name__ == "__main__":
    main()
