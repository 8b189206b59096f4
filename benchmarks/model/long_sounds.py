"""Long sounds, loops, timelines, variations and continuations against single clips.

python -m benchmarks.model.long_sounds BUNDLE CLIPS LABELS QUERIES YAMNET OUT [--seeds 8] [--kinds 19]

The judge is linear on YAMNet's embeddings of the training recordings. OUT keeps its embeddings, and gets a
JSON file of all figures.
"""

from __future__ import annotations

import json
import resource
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from PIL import Image
from scipy.stats import spearmanr

from clipsynth.schemas.payload import JobPayload, spans, windows
from clipsynth.schemas.prompts import StoredItem, StoredParent
from evaluation.clips import read_labels, read_sound
from evaluation.embedders.linear_judge import LinearJudge
from evaluation.embedders.yamnet import YamNet
from evaluation.metrics.class_accuracy import read_phrases
from evaluation.metrics.frechet import frechet_distance
from models.audio.continuation import OVERLAP_S
from models.audio.level import level
from models.pipeline import ClipSynthPipeline
from worker.predictor import Predictor

CLIP_S, RATE = 4.0, 16000
DURATIONS_S = (5.0, 10.0, 30.0, 60.0)
LOOPS_S = (4.0, 10.0)
PER_CLASS = 30
# Validation recordings of a class that are laid on timelines.
RECORDINGS = 6
# Sets of equal size, with all classes equally often, whose Frechet distances are averaged.
PICKS = 8
STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
EXTEND_S = 4.0
# Mel frames around a joint that count as joint.
NEAR = 4


def recordings(clips: Path, labels: Path, kinds: Sequence[str], judge: YamNet, cache: Path) -> LinearJudge:
    """Return the judge of the kinds; `cache` keeps the embeddings of the recordings."""
    if not cache.is_file():
        chosen: list[tuple[str, str]] = []
        for file, label in read_labels(labels, "train").items():
            if label in kinds and sum(label == other for _, other in chosen) < PER_CLASS:
                chosen.append((file, label))
        embeds = judge.embed([level(read_sound(clips / file))[0][: int(CLIP_S * RATE)] for file, _ in chosen])
        np.savez(cache, embeds=embeds, labels=np.array([label for _, label in chosen]))
    saved = np.load(cache)
    found = LinearJudge(saved["embeds"], saved["labels"].tolist())
    found.embeds = saved["embeds"].mean(1)  # type: ignore[attr-defined]
    return found


def open_study(
    bundle: Path, clips: Path, labels: Path, kinds: Sequence[str], yamnet: Path, out: Path
) -> Study:
    """Return the study of a bundle with the judge of recordings; `out` keeps the judge's embeddings."""
    ears = YamNet(yamnet)
    judge = recordings(clips, labels, kinds, ears, out / "recordings.npz")
    return Study(Predictor(ClipSynthPipeline.from_pretrained(bundle)), judge, ears)


class Study:
    """Makes the sounds and measures them."""

    def __init__(self, predictor: Predictor, judge: LinearJudge, ears: YamNet) -> None:
        self.predictor, self.judge, self.ears = predictor, judge, ears
        self.cpu_s = 0.0

    def make(
        self, sound: np.ndarray | None = None, images: Mapping[str, Image.Image] = {}, **fields: Any
    ) -> np.ndarray:
        m = self.predictor.manifest
        defaults = {"model": m.name, "prompt": None, "image_key": None, "negative_prompt": None, "seed": 0}
        defaults |= {"num_inference_steps": m.num_inference_steps, "guidance_scale": m.guidance_scale}
        defaults |= {"duration_s": CLIP_S, "num_outputs": 1, "output_formats": ["wav"]}
        self.cpu_s -= time.process_time()
        wave = self.predictor.predict(JobPayload.model_validate(defaults | fields), images, sound)
        self.cpu_s += time.process_time()
        return wave

    def embed(self, waves: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([self.ears.embed([wave])[0].mean(0) for wave in waves])

    def heard(self, embeds: np.ndarray, k: int = 1) -> list[set[str]]:
        """Return the k most probable classes of each sound (N, D)."""
        probable = self.judge.probabilities(embeds[:, None])
        return [{self.judge.labels[i] for i in np.argsort(-row)[:k]} for row in probable]

    def flux(self, wave: np.ndarray, *, loop: bool = False) -> np.ndarray:
        """Return the mean rise of the log-mel from frame to frame (F - 1,), or (F,) around a loop."""
        edge = 40 * 160
        wave = np.concatenate([wave[-edge:], wave, wave[:edge]]) if loop else wave
        mel = self.predictor.log_mel(wave)
        rises = np.maximum(np.diff(mel, axis=0), 0).mean(1)
        return rises[39:-40] if loop else rises


def inside(flux: np.ndarray, at: Sequence[float]) -> tuple[list[bool], list[float]]:
    """Return whether the flux at each time lies in the 95 % range of other places, and their ratio.

    The flux of a place is the largest within `NEAR` frames. The ratio is to the mean of other places.
    """
    width = 2 * NEAR + 1
    largest = np.lib.stride_tricks.sliding_window_view(np.pad(flux, NEAR, "edge"), width).max(1)
    frames = [min(max(0, round(t * 100) - 1), len(flux) - 1) for t in at]
    near = {n for f in frames for n in range(f - width, f + width + 1)}
    other = largest[[n for n in range(len(flux)) if n not in near]]
    low, high = np.quantile(other, [0.025, 0.975])
    own = largest[frames]
    return [bool(low <= x <= high) for x in own], [float(x / other.mean()) for x in own]


def parts(wave: np.ndarray, seconds: float = CLIP_S) -> list[np.ndarray]:
    """Return the whole parts of this length."""
    size = round(seconds * RATE)
    return [wave[n : n + size] for n in range(0, len(wave) - size + 1, size)]


def picked(embeds: np.ndarray, classes: int, each: int, draw: np.random.Generator) -> np.ndarray:
    """Return `each` rows of every class from rows (N, D) in the order of the classes."""
    return np.concatenate([draw.permutation(rows)[:each] for rows in np.split(embeds, classes)])


def of_lengths(study: Study, texts: dict[str, str], seeds: int, out: dict[str, Any]) -> dict[str, float]:
    """Measure clips of 4 s, longer sounds and loops; return how often each class is found in its clips."""
    clips, labels = [], []
    cpu = study.cpu_s
    for label, text in texts.items():
        for seed in range(seeds):
            clips.append(study.make(prompt=text, seed=1000 + seed))
            labels.append(label)
    clip_s = (study.cpu_s - cpu) / (CLIP_S * len(clips))
    embeds = study.embed(clips)
    hits = np.array([label in heard for label, heard in zip(labels, study.heard(embeds), strict=True)])
    reference = study.judge.embeds  # type: ignore[attr-defined]
    out["clip"] = {"accuracy": hits.mean(), "fad": frechet_distance(embeds, reference), "cpu_s": clip_s}
    draw = np.random.default_rng(0)
    apart = [
        np.linalg.norm(embeds[i] - embeds[j])
        for i, j in draw.integers(0, len(clips), (4000, 2))
        if labels[i] == labels[j] and i != j
    ]
    print("clip", out["clip"], flush=True)
    for seconds in DURATIONS_S:
        cpu, found, own, seen, ratios, between = study.cpu_s, [], [], [], [], []
        for n, (label, text) in enumerate(texts.items()):
            wave = study.make(prompt=text, seed=n, duration_s=seconds)
            if seconds > study.predictor.manifest.max_duration_s:
                own_windows = windows(seconds, study.predictor.manifest.max_duration_s)
                joints = [
                    t
                    for a, b in pairwise(own_windows)
                    for t in (b.start_s, a.end_s, (b.start_s + a.end_s) / 2)
                ]
                good, ratio = inside(study.flux(wave), joints)
                seen += good
                ratios += ratio
            made = parts(wave)
            found += made
            own += [label] * len(made)
        took = (study.cpu_s - cpu) / (seconds * len(texts))
        vectors = study.embed(found)
        right = [label in heard for label, heard in zip(own, study.heard(vectors), strict=True)]
        count = len(parts(np.zeros(round(seconds * RATE))))
        for k in range(len(texts)):
            rows = vectors[k * count : (k + 1) * count]
            between += [np.linalg.norm(rows[i] - rows[i + 2]) for i in range(len(rows) - 2)]
        each = min(len(vectors), len(embeds)) // len(texts)
        fads = [
            np.mean([frechet_distance(picked(x, len(texts), each, draw), reference) for _ in range(PICKS)])
            for x in (vectors, embeds)
        ]
        out[f"{seconds:g} s"] = {
            "accuracy": float(np.mean(right)),
            "fad ratio": fads[0] / fads[1],
            "apart ratio": float(np.mean(between) / np.mean(apart)) if between else None,
            "joints inside": float(np.mean(seen)) if seen else None,
            "joint flux ratio": float(np.mean(ratios)) if ratios else None,
            "work ratio": took / clip_s,
        }
        print(seconds, out[f"{seconds:g} s"], flush=True)
    for seconds in LOOPS_S:
        seen, ratios, plain = [], [], []
        for n, text in enumerate(texts.values()):
            wave = study.make(prompt=text, seed=n, duration_s=seconds, loop=True)
            good, ratio = inside(study.flux(wave, loop=True), [0.01])
            seen += good
            ratios += ratio
            cut = study.make(prompt=text, seed=n, duration_s=seconds)
            plain += inside(study.flux(cut, loop=True), [0.01])[0]
        out[f"loop {seconds:g} s"] = {
            "inside": float(np.mean(seen)),
            "flux ratio": float(np.mean(ratios)),
            "without loop inside": float(np.mean(plain)),
        }
        print("loop", seconds, out[f"loop {seconds:g} s"], flush=True)
    return {label: float(hits[[other == label for other in labels]].mean()) for label in texts}


def memory(study: Study, text: str) -> float:
    """Return the MB by which the peak of the process grows for each second of sound, from 5 s to 60 s."""
    peaks = []
    for seconds in (5.0, 60.0):
        study.make(prompt=text, duration_s=seconds)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return (peaks[1] - peaks[0]) / 55.0


def of_parents(study: Study, texts: dict[str, str]) -> dict[str, Any]:
    """Measure variations and continuations of a clip of each class."""
    correlations, kept, seen, ratios, alike, unchanged = [], [], [], [], [], []
    for n, (label, text) in enumerate(texts.items()):
        parent = study.make(prompt=text, seed=n)
        size = len(parent)
        stored = {"id": "", "output": 0, "audio_key": ""}
        made = []
        for strength in STRENGTHS:
            own = StoredParent(**stored, strength=strength)
            made.append(study.make(parent, prompt=text, seed=500 + n, parent=own))
        mels = [study.predictor.log_mel(wave) for wave in (parent, *made)]
        correlations.append(
            spearmanr(STRENGTHS, [np.abs(mel - mels[0]).mean() for mel in mels[1:]]).statistic
        )
        heard = study.heard(study.embed([parent, made[STRENGTHS.index(0.5)]]))
        kept += [label in heard[1]] if label in heard[0] else []
        own = StoredParent(**stored, extend_s=EXTEND_S)
        longer = study.make(parent, prompt=text, seed=900 + n, parent=own, duration_s=CLIP_S + EXTEND_S)
        joint = size / RATE - OVERLAP_S
        good, ratio = inside(study.flux(longer), [joint, joint + OVERLAP_S / 4, joint + OVERLAP_S / 2])
        seen += good
        ratios += ratio
        alike += [label in h for h in study.heard(study.embed([longer[size:]]))] if label in heard[0] else []
        edge = size - round(OVERLAP_S * RATE)
        unchanged.append(np.array_equal(longer[:edge], parent[:edge]))
    return {
        "rank correlation": float(np.mean(correlations)),
        "smallest": float(np.min(correlations)),
        "class kept at 0.5": float(np.mean(kept)),
        "continuation joints inside": float(np.mean(seen)),
        "joint flux ratio": float(np.mean(ratios)),
        "class kept in a continuation": float(np.mean(alike)),
        "parent unchanged": float(np.mean(unchanged)),
    }


def draw_timeline(draw: np.random.Generator, texts: dict[str, str]) -> list[tuple[str, StoredItem]]:
    """Return 2 to 4 items of different classes, of 2.5 to 6 s; a third overlaps the one before."""
    found, end = [], 0.0
    for label in draw.permutation(sorted(texts))[: draw.integers(2, 5)]:
        start = (
            max(0.0, end - 2.0) if found and draw.random() < 1 / 3 else end + float(draw.choice([0, 0, 1.5]))
        )
        end = start + float(draw.choice([2.5, 4.0, 6.0]))
        found.append((str(label), StoredItem(text=texts[str(label)], start_s=start, end_s=end)))
    return found


def laid(items: Sequence[StoredItem], sounds: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of recordings at the places of the items, repeated where they are too short."""
    mixed = np.zeros(round(max(item.end_s for item in items) * RATE), np.float32)
    for item, sound in zip(items, sounds, strict=True):
        first, last = round(item.start_s * RATE), round(item.end_s * RATE)
        mixed[first:last] += np.resize(sound, last - first)
    return mixed


def of_timelines(
    study: Study,
    texts: dict[str, str],
    alone: dict[str, float],
    recorded: dict[str, list[np.ndarray]],
    count: int,
) -> dict[str, Any]:
    """Measure how often items are found where they are asked, and elsewhere.

    Args:
        recorded: recordings of each class. Laid at the same places, they show what the judge can hear.
    """
    draw = np.random.default_rng(1)
    found: dict[str, list[bool]] = defaultdict(list)
    expected = []
    for n in range(count):
        chosen = draw_timeline(draw, texts)
        items = [item for _, item in chosen]
        duration_s = max(item.end_s for item in items)
        wave = study.make(timeline=[item.model_dump() for item in items], duration_s=duration_s, seed=n)
        real = laid(items, [recorded[label][n % len(recorded[label])] for label, _ in chosen])
        for span in spans(duration_s, items):
            if span.items and span.seconds >= 1.0:
                at = slice(round(span.start_s * RATE), round(span.end_s * RATE))
                wanted = {chosen[k][0] for k in span.items}
                ways = study.heard(study.embed([wave[at], real[at]]), len(wanted))
                expected += [alone[label] for label in wanted]
                found["elsewhere"] += [label in ways[0] for label, _ in chosen if label not in wanted]
                for name, heard in zip(("found", "recordings found"), ways, strict=True):
                    hits = [label in heard for label in wanted]
                    found[name] += hits
                    found[f"{name}, one at a time"] += hits if len(wanted) == 1 else []
    means = {name: float(np.mean(hits)) for name, hits in found.items()}
    return {**means, "in clips of 4 s": float(np.mean(expected)), "places": len(expected)}


def main(
    bundle: Path,
    clips: Path,
    labels: Path,
    queries: Path,
    yamnet: Path,
    out: Path,
    seeds: int = 8,
    kinds: int = 19,
) -> None:
    """Measure a bundle."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    texts = {label: phrases[0] for label, phrases in list(read_phrases(queries).items())[:kinds]}
    study = open_study(bundle, clips, labels, list(texts), yamnet, out)
    figures: dict[str, Any] = {}
    figures["MB a second"] = memory(study, next(iter(texts.values())))
    figures["parents"] = of_parents(study, texts)
    print(figures, flush=True)
    alone = of_lengths(study, texts, seeds, figures)
    recorded: dict[str, list[np.ndarray]] = {label: [] for label in texts}
    for file, label in read_labels(labels, "validation").items():
        if label in texts and len(recorded[label]) < RECORDINGS:
            recorded[label].append(level(read_sound(clips / file))[0][: int(CLIP_S * RATE)])
    figures["timelines"] = of_timelines(study, texts, alone, recorded, 20)
    print("timelines", figures["timelines"])
    (out / "long_sounds.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
