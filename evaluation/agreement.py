"""Class agreement: how often a judge hears in a generated sound the class that was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluation.classifier import SoundClassifier
from models.pipeline import ClipSynthPipeline


@dataclass(frozen=True)
class Query:
    """What is asked for: a `prompt` or an `image`, the `label` that should be heard, and the seed."""

    label: str
    seed: int
    prompt: str | None = None
    image: Image.Image | None = None


@dataclass(frozen=True)
class Agreement:
    """Top-1 agreement with a 95 % bootstrap interval over samples; `per_class` is the share of each class that was recognised."""

    top1: float
    low: float
    high: float
    n: int
    per_class: dict[str, float]


def read_phrases(path: Path) -> dict[str, list[str]]:
    """Return {label: phrases} of a JSON file {"classes": {label: [phrase, …]}}.

    Raises:
        ValueError: not such a file.
    """
    try:
        classes = json.loads(path.read_text())["classes"]
        return {str(label): [str(phrase) for phrase in phrases] for label, phrases in classes.items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is not of the form {{"classes": {{label: [phrase, …]}}}}: {error!r}'
        ) from error


def text_queries(phrases: Mapping[str, Sequence[str]], per_class: int, seed: int = 0) -> list[Query]:
    """Return `per_class` queries of each class that go round its phrases, every one with a seed of its own."""
    return [
        Query(label, seed + i, prompt=texts[i % len(texts)])
        for label, texts in phrases.items()
        for i in range(per_class)
    ]


def image_queries(
    pictures: Mapping[str, Sequence[Image.Image]], per_class: int, seed: int = 0
) -> list[Query]:
    """Return `per_class` queries of each class that go round its pictures, every one with a seed of its own."""
    return [
        Query(label, seed + i, image=images[i % len(images)])
        for label, images in pictures.items()
        for i in range(per_class)
    ]


def synthesize(
    pipe: ClipSynthPipeline,
    queries: Sequence[Query],
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Iterator[np.ndarray]:
    """Yield one waveform (T,) per query."""
    for query in queries:
        yield pipe(
            query.prompt,
            query.image,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(query.seed),
        ).audios[0]


def agreement(
    heard: Sequence[str], asked: Sequence[str], *, seed: int = 0, resamples: int = 2000
) -> Agreement:
    """Compare labels heard with labels asked for.

    Raises:
        ValueError: not as many of one as of the other, or none.
    """
    if not heard or len(heard) != len(asked):
        raise ValueError(f"need as many labels heard as asked for, got {len(heard)} and {len(asked)}")
    hits = np.array([h == a for h, a in zip(heard, asked, strict=True)], float)
    picks = np.random.default_rng(seed).integers(len(hits), size=(resamples, len(hits)))
    low, high = np.quantile(hits[picks].mean(1), [0.025, 0.975])
    per_class = {
        label: float(np.mean([hit for hit, a in zip(hits, asked, strict=True) if a == label]))
        for label in sorted(set(asked))
    }
    return Agreement(float(hits.mean()), float(low), float(high), len(hits), per_class)


def judge(classifier: SoundClassifier, waveforms: Sequence[np.ndarray], asked: Sequence[str]) -> Agreement:
    """Return the agreement of what the classifier hears in `waveforms` with `asked`."""
    return agreement(classifier.classify(waveforms), asked)


def to_markdown(results: Mapping[str, Agreement], chance: float) -> str:
    """Return a table of results, one row each, with the multiple of chance."""
    lines = ["| sounds | top-1 agreement | 95 % interval | × chance | N |", "|---|---:|---|---:|---:|"]
    for name, r in results.items():
        lines.append(
            f"| {name} | {100 * r.top1:.1f} % | {100 * r.low:.1f}–{100 * r.high:.1f} % | {r.top1 / chance:.1f} | {r.n} |"
        )
    return "\n".join(lines)


def to_json(results: Mapping[str, Agreement], chance: float) -> str:
    """Return results as indented JSON."""
    return json.dumps({"chance": chance, **{name: asdict(r) for name, r in results.items()}}, indent=2) + "\n"
