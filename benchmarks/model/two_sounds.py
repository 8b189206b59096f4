"""Sentences of two sounds: whole, as a set, composed and mixed, and how they are understood.

python -m benchmarks.model.two_sounds BUNDLE CLIPS LABELS QUERIES YAMNET OUT [--seeds 2] [--kinds 19]

A linear judge on YAMNet's embeddings of the training recordings hears both sounds if they are its two most
probable kinds. The sentences are those of sentences.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from benchmarks.model.long_sounds import Study, recordings
from clipsynth.schemas.understanding import pieces
from evaluation.embedders.yamnet import YamNet
from evaluation.metrics.class_accuracy import read_phrases
from models.conditioning.familiarity import Frames
from models.pipeline import ClipSynthPipeline
from worker.predictor import Predictor
from worker.understanding.sentences import joined, sounds_in

SENTENCES = Path(__file__).with_name("sentences.json")
# The beginnings of words that name a kind, for kinds that are not in the sentences by name.
NAMES = {
    "dog": ("hund", "chien"),
    "cat": ("meow",),
    "bird": ("vogel",),
    "rain": ("regn", "lluvia", "pioggia"),
    "guitar": ("gitarre", "guitarra"),
    "flute": ("flauta",),
    "harp": ("arpa",),
    "drums": ("drum", "барабаны"),
    "violin": ("violon", "скрипка", "小提琴"),
    "piano": ("钢琴",),
}


def kind_of(part: str, kinds: list[str]) -> str:
    """Return the kind that a part names first."""
    words = part.lower().split()
    for word in words:
        for kind in kinds:
            if word.startswith((kind, *NAMES.get(kind, ()))):
                return kind
    raise ValueError(f"{part!r} names no kind")


def sentences() -> Iterator[tuple[str, dict[str, Any]]]:
    """Return half and pair, in the order of the file."""
    for half, pairs in json.loads(SENTENCES.read_text(encoding="utf-8"))["pairs"].items():
        for pair in pairs:
            yield half, pair


def understood(frames: Frames, text: str) -> list[str]:
    """Return the parts that a worker finds."""
    return [joined(group) for group in sounds_in(pieces(text), frames.place)]


def main(
    bundle: Path,
    clips: Path,
    labels: Path,
    queries: Path,
    yamnet: Path,
    out: Path,
    seeds: int = 2,
    kinds: int = 19,
) -> None:
    """Measure a bundle."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    known = list(read_phrases(queries))[:kinds]
    ears = YamNet(yamnet)
    judge = recordings(clips, labels, known, ears, out / "recordings.npz")
    study = Study(Predictor(ClipSynthPipeline.from_pretrained(bundle)), judge, ears)
    assert study.predictor.frames is not None
    figures: dict[str, list[float]] = {}
    for half, pair in sentences():
        pair_kinds = {kind_of(part, known) for part in pair["parts"]}
        parts = [{"text": part} for part in pair["parts"]]
        requests: dict[str, dict[str, Any]] = {"whole": {"prompt": pair["text"]}}
        requests |= {name: {"prompts": parts, "composition": name} for name in ("set", "compose", "mix")}
        is_split = len(understood(study.predictor.frames, pair["text"])) == 2
        for seed in range(seeds):
            for name, request in requests.items():
                [heard] = study.heard(study.embed([study.make(seed=1000 + seed, **request)]), 2)
                figures.setdefault(name, []).append(float(heard == pair_kinds))
                figures.setdefault(f"{name}, kinds", []).append(len(heard & pair_kinds) / 2)
            for name in ("set", "compose", "mix"):
                figures.setdefault(f"as understood, {name}", []).append(
                    figures[name if is_split else "whole"][-1]
                )
        print(half, pair["text"], {name: np.mean(values).round(3) for name, values in figures.items()})
    means = {name: float(np.mean(values)) for name, values in figures.items()}
    (out / "two_sounds.json").write_text(json.dumps(means, indent=1) + "\n")
    print(means)


if __name__ == "__main__":
    typer.run(main)
