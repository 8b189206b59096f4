"""Plot the validation loss of runs, from the `dev.tsv` that training writes.

python -m benchmarks.model.plot_losses docs/dev_loss.png CLIPSynth=runs/demo CLIPSynth-Text=runs/demo-text
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import typer


def main(plot: Path, runs: list[str]) -> None:
    """Plot the validation loss of runs, each given as NAME=FOLDER."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, _, run in (argument.partition("=") for argument in runs):
        with (Path(run) / "denoiser" / "dev.tsv").open(newline="") as f:
            points = [(int(step), float(loss)) for step, loss, _ in csv.reader(f, delimiter="\t")]
        best_step, best = min(points, key=lambda point: point[1])
        axes.plot(*zip(*points, strict=True), label=f"{name}: {best:.3f} at step {best_step}")
    axes.set(xlabel="step", ylabel="flow loss on dev", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(plot, dpi=100)


if __name__ == "__main__":
    typer.run(main)
