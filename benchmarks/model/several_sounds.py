"""Sentences of several sounds: whole, as a set, composed and mixed, and how they are understood.

python -m benchmarks.model.several_sounds BUNDLE CLIPS LABELS QUERIES YAMNET OUT
    [--sounds 2] [--seeds 2] [--kinds 19]

A linear judge on YAMNet's embeddings hears all N sounds if they are its N most probable kinds. It learns from
training recordings and from sums of N of them. The sentences are those of sentences.json.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.model.long_sounds import CLIP_S, RATE, Study
from clipsynth.schemas.sentences import pieces
from evaluation.clips import read_labels, read_sound
from evaluation.embedders.linear_judge import LinearJudge
from evaluation.embedders.yamnet import YamNet
from evaluation.metrics.class_accuracy import read_phrases
from models.audio.level import level
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


PER_KIND, MIXES, HELD_OUT_MIXES = 12, 1000, 100


def mixes(
    sounds: list[tuple[np.ndarray, str]], size: int, count: int, ears: YamNet
) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Return the embeddings of `count` sums of `size` sounds of different kinds, and these kinds."""
    rng, found, kinds = np.random.default_rng(0), [], []
    while len(kinds) < count:
        waves, names = zip(*(sounds[n] for n in rng.integers(len(sounds), size=size)), strict=True)
        if len(set(names)) == size:
            found.append(ears.embed([np.sum(waves, axis=0)])[0].mean(0))
            kinds.append(names)
    return np.stack(found)[:, None], kinds


def read_sounds(clips: Path, labels: Path, split: str, kinds: list[str]) -> list[tuple[np.ndarray, str]]:
    """Return at most `PER_KIND` recordings of each kind, all of full length and one level."""
    found: list[tuple[np.ndarray, str]] = []
    for file, label in read_labels(labels, split).items():
        if label in kinds and sum(label == other for _, other in found) < PER_KIND:
            sound = level(read_sound(clips / file))[0][: int(CLIP_S * RATE)]
            if len(sound) == int(CLIP_S * RATE):
                found.append((sound / max(float(np.sqrt(np.square(sound).mean())), 1e-6), label))
    return found


def judge_of_mixes(
    clips: Path, labels: Path, kinds: list[str], size: int, ears: YamNet
) -> tuple[LinearJudge, dict[str, float]]:
    """Return the judge, and how well it hears all sounds of sums of validation recordings."""
    sounds = read_sounds(clips, labels, "train", kinds)
    alone = np.stack([ears.embed([sound])[0].mean(0) for sound, _ in sounds])[:, None]
    mixed, names = mixes(sounds, size, MIXES, ears)
    judge = LinearJudge(
        np.concatenate([alone, *[mixed] * size]),
        [*(label for _, label in sounds), *itertools.chain(*zip(*names, strict=True))],
    )
    tried, wanted = mixes(read_sounds(clips, labels, "validation", kinds), size, HELD_OUT_MIXES, ears)
    heard = np.argsort(-judge.probabilities(tried), axis=1)[:, :size]
    hits = [
        len({judge.labels[i] for i in row} & set(names)) for row, names in zip(heard, wanted, strict=True)
    ]
    shares = np.array(hits) / size
    return judge, {"real sums": float((shares == 1).mean()), "real sums, kinds": float(shares.mean())}


def kind_of(part: str, kinds: list[str]) -> str:
    """Return the kind that a part names first."""
    words = part.lower().split()
    for word in words:
        for kind in kinds:
            if word.startswith((kind, *NAMES.get(kind, ()))):
                return kind
    raise ValueError(f"{part!r} names no kind")


def sentences(size: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return half and sentence of two or three sounds, in the order of the file."""
    read = json.loads(SENTENCES.read_text(encoding="utf-8"))
    for half, items in ({"three": read["three"]} if size == 3 else read["pairs"]).items():
        for item in items:
            yield half, item


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
    sounds: Annotated[int, typer.Option(min=2, max=3)] = 2,
    seeds: int = 2,
    kinds: int = 19,
) -> None:
    """Measure a bundle."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    known = list(read_phrases(queries))[:kinds]
    ears = YamNet(yamnet)
    judge, ceiling = judge_of_mixes(clips, labels, known, sounds, ears)
    print(ceiling, flush=True)
    study = Study(Predictor(ClipSynthPipeline.from_pretrained(bundle)), judge, ears)
    assert study.predictor.frames is not None
    figures: dict[str, list[float]] = {}
    for half, sentence in sentences(sounds):
        wanted = {kind_of(part, known) for part in sentence["parts"]}
        parts = [{"text": part} for part in sentence["parts"]]
        requests: dict[str, dict[str, Any]] = {"whole": {"prompt": sentence["text"]}}
        requests |= {name: {"prompts": parts, "composition": name} for name in ("set", "compose", "mix")}
        is_split = len(understood(study.predictor.frames, sentence["text"])) == sounds
        for seed in range(seeds):
            for name, request in requests.items():
                [heard] = study.heard(study.embed([study.make(seed=1000 + seed, **request)]), sounds)
                figures.setdefault(name, []).append(float(heard == wanted))
                figures.setdefault(f"{name}, kinds", []).append(len(heard & wanted) / sounds)
            for name in ("set", "compose", "mix"):
                figures.setdefault(f"as understood, {name}", []).append(
                    figures[name if is_split else "whole"][-1]
                )
        print(
            half,
            sentence["text"],
            {name: np.mean(values).round(3) for name, values in figures.items()},
            flush=True,
        )
    means = ceiling | {name: float(np.mean(values)) for name, values in figures.items()}
    (out / "several_sounds.json").write_text(json.dumps(means, indent=1) + "\n")
    print(means)


if __name__ == "__main__":
    typer.run(main)
