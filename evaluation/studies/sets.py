"""Two sounds at once: are both heard that a set of two was to bring? By composition, and for the naive text "A and B"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from evaluation.audio import fingerprint, fit
from evaluation.clips import LabelledClip
from evaluation.interfaces import Query, QueryKind
from evaluation.metrics.bootstrap import Figure, difference, mean_figure
from evaluation.plan import Sample
from evaluation.report.table import cell, percent
from evaluation.studies.setting import Setting, table
from evaluation.systems.bundle import load_pipeline
from models.audio.level import level
from models.conditioning.prompts import Composition, Prompt
from models.pipeline import ClipSynthPipeline
from models.sampler import advance

NAIVE = "naive"  # one text "A and B"


@dataclass(frozen=True)
class PairQuery(Query):
    """Two classes, a validation or dev clip of each; `first` and `second` are what is asked for of them, in words or an image."""

    first: str | LabelledClip = ""
    second: str | LabelledClip = ""
    clips: tuple[LabelledClip, ...] = ()


class PairSystem:
    """A bundle asked for two things, by a composition or naively."""

    kinds: frozenset[QueryKind] = frozenset({"text"})
    deterministic, generative, unlabeled, training_query = False, True, True, "image"

    def __init__(
        self, name: str, pipe: ClipSynthPipeline, composition: str, steps: int | None = None
    ) -> None:
        self.name, self.pipe, self.composition = name, pipe, composition
        self.steps = pipe.manifest.num_inference_steps if steps is None else steps
        self.version = fingerprint("pairs", pipe.manifest.version, composition, self.steps)

    @torch.inference_mode()
    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        mode: Composition = "set" if self.composition == NAIVE else self.composition  # type: ignore[assignment]
        rows = [
            self.pipe.prepare_rows(
                self._prompts(query),
                composition=mode,
                num_inference_steps=self.steps,
                guidance_scale=self.pipe.manifest.guidance_scale,
                duration_s=query.duration_s,
                generators=[torch.Generator().manual_seed(seed)],
            )[0]
            for query, seed in zip(queries, seeds, strict=True)
        ]
        while rows and not rows[0].done:
            advance(rows, self.pipe.denoiser)
        return [self.pipe.decode([row], q.duration_s)[0] for row, q in zip(rows, queries, strict=True)]

    def _prompts(self, query: Query) -> list[Prompt]:
        assert isinstance(query, PairQuery)
        if self.composition == NAIVE:
            return [Prompt(f"{query.first} and {query.second}")]
        parts = (query.first, query.second)
        return [Prompt(p if isinstance(p, str) else p.frame) for p in parts]


class MixedRecordings:
    """The clips' own sounds, each at the same level, added: what the judge hears where both are certainly there."""

    name, version = "real sounds, mixed", "1"
    kinds: frozenset[QueryKind] = frozenset({"text"})
    deterministic, generative, unlabeled, training_query = True, False, False, "–"

    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        return [self._mix(query) for query, _ in zip(queries, seeds, strict=True)]

    def _mix(self, query: Query) -> np.ndarray:
        assert isinstance(query, PairQuery)
        sounds = [fit(clip.waveform, query.duration_s) for clip in query.clips]
        powers = [np.sqrt(np.mean(np.square(s - s.mean()))) for s in sounds]
        mixed = sum(s / max(float(p), 1e-6) for s, p in zip(sounds, powers, strict=True))
        return level(np.asarray(mixed, np.float32))[0]


def pairs(setting: Setting, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return `count` pairs of different classes, drawn without replacement; all where there are no more."""
    every = list(combinations(sorted({clip.label for clip in setting.plan.clips}), 2))
    order = np.random.default_rng(seed).permutation(len(every))[:count]
    return [every[i] for i in sorted(order)]


def pair_samples(setting: Setting, wanted: Sequence[tuple[str, str]], *, image: bool) -> list[Sample]:
    """Return samples of all pairs, seed by seed; with `image` the first of each is asked for by an image."""
    plan = setting.plan
    found = []
    for turn in range(plan.seeds):
        for n, labels in enumerate(wanted):
            clips = tuple(_turn([c for c in plan.clips if c.label == label], n + turn) for label in labels)
            texts = [_turn(plan.phrases[label], turn) for label in labels]
            first = clips[0] if image else texts[0]
            asked = f"{clips[0].file if image else texts[0]} + {texts[1]}"
            query = PairQuery(
                "+".join(labels),
                "+".join(c.file for c in clips),
                asked,
                None,
                plan.duration_s,
                first,
                texts[1],
                clips,
            )
            found.append(Sample(query, plan.first_seed + turn * len(wanted) + n, turn))
    return found


def _turn(items: Sequence[Any], n: int) -> Any:
    return items[n % len(items)]


def recall(probabilities: np.ndarray, labels: Sequence[str], asked: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return (N,): the share, 0, 0.5 or 1, of the two classes asked for that are the judge's two most probable of (N, C)."""
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    return np.array(
        [len({labels[i] for i in row} & set(pair)) / 2 for row, pair in zip(top, asked, strict=True)]
    )


def sets(setting: Setting, bundle: Path, *, count: int = 40, steps: int | None = None) -> str:
    """Write and return the table: for each composition how often the judge's two most probable classes are those asked for.

    Args:
        count: pairs of classes; each is asked for as often as the setting has seeds.

    Raises:
        ValueError: fewer than two classes, or a bundle that cannot be used.
    """
    wanted = pairs(setting, count)
    if not wanted:
        raise ValueError("pairs need at least two classes")
    pipe = load_pipeline(str(bundle))
    compositions = [*get_args(Composition)]
    results: dict[str, Any] = {}
    texts, pictured = (pair_samples(setting, wanted, image=p) for p in (False, True))
    for asked, samples, modes in (
        ("two texts", texts, [*compositions, NAIVE]),
        ("image and text", pictured, compositions),
    ):
        found = {m: _figures(setting, PairSystem(m, pipe, m, steps), samples, wanted) for m in modes}
        for mode in modes:
            over = {"over mix": difference(found[mode]["recall"], found["mix"]["recall"])}
            results[f"{asked}, {mode}"] = found[mode] | (over if mode != "mix" else {})
    results[MixedRecordings.name] = _figures(setting, MixedRecordings(), texts, wanted)
    return setting.write(
        "sets",
        {"bundle": str(bundle), "version": pipe.manifest.version, "pairs": wanted},
        results,
        _table(setting, results, len(wanted)),
    )


def _figures(
    setting: Setting,
    system: PairSystem | MixedRecordings,
    samples: Sequence[Sample],
    wanted: Sequence[tuple[str, str]],
) -> dict[str, Figure]:
    """Return recall and how often both are found, with intervals over pairs."""
    _, heard = setting.heard(system, samples)
    pair_of = [n % len(wanted) for n in range(len(samples))]
    found = recall(heard, setting.judge.labels, [wanted[n] for n in pair_of])
    picks = np.random.default_rng(0).integers(len(wanted), size=(setting.options.resamples, len(wanted)))
    return {"recall": mean_figure(found, pair_of, picks), "both": mean_figure(found == 1, pair_of, picks)}


def _table(setting: Setting, results: dict[str, Any], count: int) -> str:
    rows = [
        [name, cell(row["recall"], percent), cell(row.get("over mix"), percent), cell(row["both"], percent)]
        for name, row in results.items()
    ]
    classes = len(setting.judge.labels)
    notes = [
        f"{count} pairs of classes, {setting.plan.seeds} sounds of each, first seed {setting.plan.first_seed}. recall: the share of the two classes asked for that are among the judge's two most probable "
        f"(chance {200 / classes:.1f} %); the judge was trained on single sounds, so the last row is what it hears in true mixes. In brackets: 95 % of {setting.options.resamples} bootstrap resamples of pairs.",
    ]
    return table(["Asked for by", "recall ↑", "recall − mix", "both found ↑"], rows, notes)
