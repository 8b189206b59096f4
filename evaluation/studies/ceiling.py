"""The ceiling that the encoder sets: the classes of the training images nearest to a query.

A generator knows a query only by its embedding. It cannot be expected to answer with the right class more
often than the images around that embedding are of the right class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluation.clips import read_clips, read_labels
from evaluation.metrics.bootstrap import draw_picks, mean_figure
from evaluation.metrics.class_accuracy import per_class, read_phrases
from evaluation.report.table import cell, markdown_table, percent
from evaluation.studies.context import Split, StudyContext, suffixes
from evaluation.studies.ladder import RAW, FitPrior, TextVariant, build
from evaluation.studies.study import save, sweep
from evaluation.systems.bundle import load_pipeline
from models.conditioning.prompts import Prompt
from models.networks.condition_encoder import ConditionEncoder
from models.pipeline import ClipSynthPipeline
from models.retrieval.clip_index import Index

K = 5
OWN_SETTINGS = "the bundle's settings"


class Lookup(NamedTuple):
    """Queries of known classes, as embeddings (N, D), and the index to look them up in."""

    labels: Sequence[str]
    embeds: torch.Tensor
    clips: Index


def neighbours(index: Index, queries: torch.Tensor, k: int) -> np.ndarray:
    """Return the classes (N, k) of the nearest clips, nearest first; each clip's class is its "label"."""
    labels = np.array([clip["label"] for clip in index.clips])
    return np.asarray(labels[index.nearest(queries, k).numpy()])


def shares(found: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Return (N,): the share of the neighbours (N, k) that are of the query's class."""
    return np.asarray((found == np.asarray(labels)[:, None]).mean(1))


def majorities(found: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Return (N,): 1 if the commonest class of the neighbours (N, k) is the query's, else 0.

    Of equally common classes the one that comes first, which is the nearest, counts.
    """
    commonest = [Counter(row.tolist()).most_common(1)[0][0] for row in found]
    return np.array([c == label for c, label in zip(commonest, labels, strict=True)], float)


def labelled(index: Index, labels: Mapping[str, str]) -> Index:
    """Return the clips of an index whose video has a label, with that label.

    Raises:
        ValueError: no video has one.
    """
    by_name = {name: label for file, label in labels.items() for name in suffixes(file)}
    kept = [n for n, clip in enumerate(index.clips) if clip["video"] in by_name]
    if not kept:
        raise ValueError("the labels name none of the bundle's training videos")
    clips = [index.clips[n] | {"label": by_name[index.clips[n]["video"]]} for n in kept]
    return Index(index.embeds[kept], clips)


def centred(index: Index, encoder: ConditionEncoder) -> Index:
    """Return the index with its images centred as for the generator."""
    return Index(encoder.centre(index.embeds.to(encoder.device), "image").cpu(), index.clips)


@torch.no_grad()  # not inference mode: a prior may have to be fitted
def ceiling(
    context: StudyContext,
    bundle: Path,
    k: int = K,
    *,
    variants: Sequence[TextVariant] = (),
    fit_prior: FitPrior | None = None,
) -> str:
    """Write and return the table: how many of the k nearest training images are of the query's class.

    Args:
        variants: text variants of the ladder; texts are looked up with each.
        fit_prior: fits the prior of the variants that need one.

    Raises:
        ValueError: the bundle lists no training clips, or the labels cannot be used.
    """
    pipe = load_pipeline(str(bundle))
    if pipe.index is None:
        raise ValueError(f"{bundle} has no retrieval index (index.safetensors)")
    index = labelled(pipe.index, read_labels(context.options.label_file, "train"))

    def points() -> Iterator[tuple[str, Lookup]]:
        phrases = read_phrases(context.options.queries)
        pairs = [(label, text) for label, texts in phrases.items() for text in texts]
        labels, texts = [label for label, _ in pairs], [text for _, text in pairs]
        yield "text, raw", Lookup(labels, torch.cat([pipe.encoder.encode_text([t]) for t in texts]), index)
        yield f"text, {OWN_SETTINGS}", _centred_texts(pipe, labels, texts, index)
        for variant in variants:
            if variant.name != RAW:
                own = build(variant, pipe, fit_prior)
                yield f"text, {variant.name}", _centred_texts(own, labels, texts, index)
        splits: list[Split] = ["validation", "dev"] if context.options.prepared else ["validation"]
        for split in splits:
            clips = list(read_clips(context.options.clips, context.labels(split)))
            labels = [clip.label for clip in clips]
            embeds = torch.cat([pipe.encoder.encode_image([clip.frame]) for clip in clips])
            encoder = pipe.condition_encoder
            yield f"image, {split}, raw", Lookup(labels, embeds, index)
            own_embeds = encoder.centre(embeds, "image")
            yield f"image, {split}, centred", Lookup(labels, own_embeds, centred(index, encoder))

    def measure(point: Lookup) -> dict[str, Any]:
        found = neighbours(point.clips, point.embeds, k)
        picks = draw_picks(point.labels, context.options.resamples)
        share, queries = shares(found, point.labels), range(len(point.labels))
        return {
            "share": mean_figure(share, queries, picks),
            "majority": mean_figure(majorities(found, point.labels), queries, picks),
            "per_class": per_class(share, point.labels),
            "queries": len(point.labels),
        }

    results = sweep(context, points(), measure)
    return save(context, "ceiling", results, _table(results, k), bundle=bundle, k=k)


def _centred_texts(
    pipe: ClipSynthPipeline, labels: Sequence[str], texts: Sequence[str], index: Index
) -> Lookup:
    encoder = pipe.condition_encoder
    embeds = torch.stack([pipe.encode_conditions([Prompt(text)], 1)[0].embedding for text in texts])
    return Lookup(labels, encoder.centre(embeds.to(encoder.device), "text"), centred(index, encoder))


def _table(results: Mapping[str, Mapping[str, Any]], k: int) -> str:
    head = ["Query, space", f"share of {k}", f"most of {k}", "N"]
    rows = [
        [name, cell(row["share"], percent), cell(row["majority"], percent), str(row["queries"])]
        for name, row in results.items()
    ]
    shares_of = [row["per_class"] for row in results.values()]
    by_class = [
        [label, *(percent(share[label]) if label in share else "–" for share in shares_of)]
        for label in sorted({label for share in shares_of for label in share})
    ]
    notes = [
        f"The {k} training images nearest to a query by cosine: the mean share that is of its class, and how "
        "often its class is the commonest. raw: embeddings as the encoder returns them; the others: less the "
        "mean of their kind, texts in the named variant of `clipsynth study ladder`. In brackets: 95 % of "
        "resamples of queries within classes.",
        "",
        f"The share of {k}, by class:",
        "",
    ]
    return markdown_table(head, rows, notes=[*notes, markdown_table(["Class", *results], by_class)])
