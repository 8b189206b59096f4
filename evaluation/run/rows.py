"""From entries to rows of the table, and from rows to text gaps."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from evaluation.embedders.base import TextEmbedder
from evaluation.metrics.bootstrap import Figure
from evaluation.metrics.text_gap import gap_closed, text_gap
from evaluation.plan import Plan
from evaluation.run.entries import Entry
from evaluation.run.scores import (
    Reference,
    TableRow,
    copy_figures,
    distance_figures,
    image_figure,
    judged_figures,
    level_checks,
    manifold_figures,
    seconds_figure,
    text_relevance,
)
from evaluation.systems.external import Folder
from evaluation.systems.recordings import Recordings
from models.retrieval.copy_distance import relative

Gaps = dict[str, dict[str, dict[str, Figure]]]  # {system: {metric: {"gap" and maybe "closed": figure}}}


def score(entry: Entry, reference: Reference, plan: Plan, *, rtf_clips: int) -> TableRow:
    """Return all figures of an entry; distances of the validation clips to themselves are left out."""
    system, compared = entry.system, entry.compared
    row = TableRow(
        system.name,
        "–" if entry.kind == "clip" else entry.kind,
        system.training_query,
        system.generative,
        system.unlabeled,
        entry.distinct,
    )
    clip_at = {clip.file: i for i, clip in enumerate(plan.clips)}
    is_real = isinstance(system, Recordings)
    if not (is_real and entry.judged):
        for embedder in reference.embedders:
            sets, real = entry.split(compared.embeds(embedder)), reference.embeds[embedder.name]
            row.figures |= distance_figures(embedder.name, sets, real, reference)
            row.figures |= manifold_figures(embedder.name, sets, real, reference)
        for embedder in reference.images:
            sets, real = entry.split(compared.embeds(embedder)), reference.embeds[embedder.name]
            row.figures |= image_figure(embedder.name, sets, real, reference)
    if entry.judged:
        asked = [s.query for s in entry.judged]
        clip_of = [clip_at[q.clip] for q in asked]
        heard = entry.heard.probabilities(reference.judge)
        figures, row.per_class, worst = judged_figures(reference, heard, [q.label for q in asked], clip_of)
        row.figures |= figures
        row.worst = [entry.judged[i] for i in worst]
        samples = [s for one_set in entry.sets for s in one_set]
        if reference.training is not None:
            apart = reference.training.distances(list(compared.small_mels()))
            row.nearest, row.relative = apart.min(1), relative(apart)
            row.closest = [samples[i] for i in np.argsort(row.nearest, kind="stable")[:10]]
            clips = [clip_at[s.query.clip] for s in samples]
            row.figures |= copy_figures(reference, row.nearest, clips)
        for embedder in reference.embedders:
            if isinstance(embedder, TextEmbedder) and entry.kind == "text":
                row.figures[f"relevance/{embedder.name}"] = text_relevance(
                    embedder,
                    entry.heard.embeds(embedder),
                    [q.prompt or "" for q in asked],
                    clip_of,
                    reference.picks(),
                )
    row.checks = level_checks(compared.levels(), plan.duration_s)
    if rtf_clips and not isinstance(system, (Recordings, Folder)):
        row.figures["RTF"] = seconds_figure(time_alone(entry, rtf_clips))
    return row


def time_alone(entry: Entry, count: int) -> list[float]:
    """Return seconds per second of sound for `count` queries, each alone, after one that is not counted."""
    found = []
    samples = entry.sets[0]
    for sample in [samples[0], *samples[:count]]:
        started = time.perf_counter()
        entry.system.synthesize([sample.query], [sample.seed])
        found.append((time.perf_counter() - started) / sample.query.duration_s)
    return found[1:]


def text_gaps(rows: Sequence[TableRow], metrics: Sequence[str], baseline: str) -> Gaps:
    """Return M_text - M_image of each system that answers both, and how much of the baseline's gap it closes, in per cent."""
    asked = {(row.system, row.query): row.figures for row in rows}
    both = [
        s for s in dict.fromkeys(row.system for row in rows) if {(s, "text"), (s, "image")} <= asked.keys()
    ]
    gaps: Gaps = {}
    for system in both:
        text, image = asked[system, "text"], asked[system, "image"]
        shared = [m for m in metrics if m in text and m in image]
        gaps[system] = {m: {"gap": text_gap(text[m], image[m])} for m in shared}
    for system, found in gaps.items():
        for metric, by_name in found.items():
            base = gaps.get(baseline, {}).get(metric, {}).get("gap")
            if system != baseline and base is not None and base.value != 0:
                by_name["closed"] = gap_closed(by_name["gap"], base)
    return gaps
