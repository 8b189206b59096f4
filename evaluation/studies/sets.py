"""Two sounds at once: how often the judge finds both, by composition and for the text "A and B"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from evaluation.audio import fingerprint, fit
from evaluation.clips import LabelledClip
from evaluation.interfaces import Query, QueryKind
from evaluation.metrics.bootstrap import Figure, difference, mean_figure
from evaluation.plan import Sample
from evaluation.report.table import cell, markdown_table, percent
from evaluation.run.rows import Entry
from evaluation.studies.context import StudyContext
from evaluation.studies.study import save, sweep
from evaluation.systems.bundle import Bundle, load_pipeline
from models.audio.level import level
from models.conditioning.prompts import Composition, Prompt
from models.pipeline import ClipSynthPipeline

NAIVE = "naive"  # one text "A and B"
TWO_TEXTS, IMAGE_AND_TEXT = "two texts", "image and text"


@dataclass(frozen=True)
class PairQuery(Query):
    """Two classes and a clip of each. `first` and `second` ask for them: a text, or the clip's image."""

    first: str | LabelledClip = ""
    second: str | LabelledClip = ""
    clips: tuple[LabelledClip, ...] = ()


class PairSystem(Bundle):
    """A bundle that answers a query for two sounds, by a composition or naively."""

    kinds = frozenset({"text"})

    def __init__(self, mode: str, pipe: ClipSynthPipeline, steps: int | None = None) -> None:
        super().__init__(mode, pipe, steps=steps)
        self.composition = cast(Composition, "set" if mode == NAIVE else mode)
        self.version = fingerprint("pairs", pipe.manifest.version, mode, self.steps)

    def prompts(self, query: Query) -> list[Prompt]:
        assert isinstance(query, PairQuery)
        if self.name == NAIVE:
            return [Prompt(f"{query.first} and {query.second}")]
        parts = (query.first, query.second)
        return [Prompt(p if isinstance(p, str) else p.frame) for p in parts]


class MixedRecordings:
    """The clips' own sounds at the same level, added: the judge's recall if both are certainly present."""

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


def class_pairs(context: StudyContext, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return `count` random pairs of different classes, no pair twice; all pairs if there are fewer."""
    every = list(combinations(sorted({clip.label for clip in context.plan.clips}), 2))
    order = np.random.default_rng(seed).permutation(len(every))[:count]
    return [every[i] for i in sorted(order)]


def pair_samples(
    context: StudyContext, pairs: Sequence[tuple[str, str]], *, with_image: bool
) -> list[Sample]:
    """Return samples of all pairs, seed by seed; `with_image` asks for the first of each by an image."""
    plan = context.plan
    found = []
    for turn in range(plan.seeds):
        for n, labels in enumerate(pairs):
            clips = tuple(_nth([c for c in plan.clips if c.label == label], n + turn) for label in labels)
            texts = [_nth(plan.phrases[label], turn) for label in labels]
            first = clips[0] if with_image else texts[0]
            prompt = f"{clips[0].file if with_image else texts[0]} + {texts[1]}"
            label, files = "+".join(labels), "+".join(c.file for c in clips)
            query = PairQuery(label, files, prompt, None, plan.duration_s, first, texts[1], clips)
            found.append(Sample(query, plan.first_seed + turn * len(pairs) + n, turn))
    return found


def _nth(items: Sequence[Any], n: int) -> Any:
    return items[n % len(items)]


def recall(probabilities: np.ndarray, labels: Sequence[str], pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return (N,): the share of a pair's classes among the judge's two most probable of (N, C)."""
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    found = [len({labels[i] for i in row} & set(pair)) / 2 for row, pair in zip(top, pairs, strict=True)]
    return np.array(found)


def sets(context: StudyContext, bundle: Path, *, count: int = 40, steps: int | None = None) -> str:
    """Write and return the table: how often the judge finds both classes, for each composition.

    Args:
        count: pairs of classes; one sound of each per seed.

    Raises:
        ValueError: fewer than two classes, or the bundle cannot be used.
    """
    pairs = class_pairs(context, count)
    if not pairs:
        raise ValueError("pairs need at least two classes")
    pipe = load_pipeline(str(bundle))
    texts, with_image = (pair_samples(context, pairs, with_image=i) for i in (False, True))

    def points() -> Iterator[tuple[str, Entry]]:
        compositions = get_args(Composition)
        for mode in (*compositions, NAIVE):
            yield f"{TWO_TEXTS}, {mode}", context.entry_for(PairSystem(mode, pipe, steps), texts)
        for mode in compositions:
            system = PairSystem(mode, pipe, steps)
            yield f"{IMAGE_AND_TEXT}, {mode}", context.entry_for(system, with_image)
        yield MixedRecordings.name, context.entry_for(MixedRecordings(), texts)

    def measure(entry: Entry) -> dict[str, Figure]:
        """Return recall and the share of sounds with both classes, with intervals over pairs."""
        probabilities = entry.judged_features.probabilities(context.judge)
        pair_of = [n % len(pairs) for n in range(len(entry.judged))]
        found = recall(probabilities, context.judge.labels, [pairs[n] for n in pair_of])
        size = (context.options.resamples, len(pairs))
        picks = np.random.default_rng(0).integers(len(pairs), size=size)
        return {"recall": mean_figure(found, pair_of, picks), "both": mean_figure(found == 1, pair_of, picks)}

    results = _with_differences(sweep(context, points(), measure))
    table, version = _table(context, results, len(pairs)), pipe.manifest.version
    return save(context, "sets", results, table, bundle=bundle, version=version, pairs=pairs)


def _with_differences(measured: Mapping[str, dict[str, Figure]]) -> dict[str, dict[str, Figure]]:
    """Add to each composition the difference of its recall to that of "mix"."""
    results = {}
    for name, figures in measured.items():
        query, _, mode = name.partition(", ")
        mix = measured.get(f"{query}, mix")
        over = {"over mix": difference(figures["recall"], mix["recall"])} if mix and mode != "mix" else {}
        results[name] = figures | over
    return results


def _table(context: StudyContext, results: Mapping[str, Mapping[str, Figure]], count: int) -> str:
    rows = [
        [name, *(cell(row.get(figure), percent) for figure in ("recall", "over mix", "both"))]
        for name, row in results.items()
    ]
    chance = 200 / len(context.judge.labels)
    notes = [
        f"{count} pairs of classes, {context.plan.seeds} sounds of each, first seed "
        f"{context.plan.first_seed}. recall: the share of the two classes among the judge's two most "
        f"probable (chance {chance:.1f} %). The judge was trained on single sounds; the last row is real "
        f"mixes. In brackets: 95 % of {context.options.resamples} bootstrap resamples of pairs."
    ]
    return markdown_table(["Query", "recall ↑", "recall − mix", "both found ↑"], rows, notes=notes)
