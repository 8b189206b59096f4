"""The ceiling that the encoder sets: how often the training images nearest to a query are of its class. No sound is made.

A generator that knows a query only by its embedding cannot be expected to answer with the right class more often than the images around that embedding have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.clips import read_clips, read_labels
from evaluation.metrics.bootstrap import Figure, draw_picks, mean_figure
from evaluation.metrics.class_accuracy import per_class, read_phrases
from evaluation.report.table import cell, percent
from evaluation.studies.ladder import RAW, Prior, Rung, build
from evaluation.studies.setting import Setting, Split, suffixes, table
from evaluation.systems.bundle import load_pipeline
from models.conditioning.prompts import Prompt
from models.networks.condition_encoder import ConditionEncoder
from models.retrieval.clip_index import Index

K = 5
AS_IT_IS = "as the bundle has it"


def neighbours(index: Index, queries: torch.Tensor, k: int) -> np.ndarray:
    """Return the classes (N, k) of the nearest clips, nearest first; each clip has its class under "label"."""
    labels = np.array([clip["label"] for clip in index.clips])
    return np.asarray(labels[index.nearest(queries, k).numpy()])


def shares(found: np.ndarray, asked: Sequence[str]) -> np.ndarray:
    """Return (N,): the share of the neighbours (N, k) that are of the class asked for."""
    return np.asarray((found == np.asarray(asked)[:, None]).mean(1))


def majorities(found: np.ndarray, asked: Sequence[str]) -> np.ndarray:
    """Return (N,) of 1 where most of the neighbours (N, k) are of the class asked for; between classes with equally many the nearest one's is taken."""
    most = [Counter(row.tolist()).most_common(1)[0][0] for row in found]
    return np.array([m == a for m, a in zip(most, asked, strict=True)], float)


def labelled(index: Index, labels: Mapping[str, str]) -> Index:
    """Return the clips of an index whose video has a label, with it.

    Raises:
        ValueError: none has one.
    """
    by_name = {name: label for file, label in labels.items() for name in suffixes(file)}
    kept = [n for n, clip in enumerate(index.clips) if clip["video"] in by_name]
    if not kept:
        raise ValueError("the labels name none of the bundle's training videos")
    clips = [index.clips[n] | {"label": by_name[index.clips[n]["video"]]} for n in kept]
    return Index(index.embeds[kept], clips)


def centred(index: Index, encoder: ConditionEncoder) -> Index:
    """Return the index with its images as the generator gets them."""
    return Index(encoder.centre(index.embeds.to(encoder.device), "image").cpu(), index.clips)


@torch.no_grad()  # not inference mode: a prior may have to be fitted
def ceiling(
    setting: Setting,
    bundle: Path,
    k: int = K,
    *,
    rungs: Sequence[Rung] = (),
    prior: Prior | None = None,
) -> str:
    """Write and return the table: for each kind of query the share of the k nearest training images that are of its class, and how often most are.

    Args:
        rungs: of the ladder, by which texts are looked up too.
        prior: fits the prior of those that have one.

    Raises:
        ValueError: the bundle lists no training clips, or labels that cannot be used.
    """
    pipe = load_pipeline(str(bundle))
    if pipe.index is None:
        raise ValueError(f"{bundle} has no retrieval index (index.safetensors)")
    plain = labelled(pipe.index, read_labels(setting.options.label_file, "train"))
    results: dict[str, Any] = {}

    def look_up(name: str, asked: Sequence[str], embeds: torch.Tensor, index: Index) -> None:
        results[name] = _row(neighbours(index, embeds, k), asked, setting.options.resamples)

    # Texts: as they come, as the bundle has them, and on each rung.
    every = read_phrases(setting.options.queries)
    texts = [(label, text) for label, phrases in every.items() for text in phrases]
    asked = [label for label, _ in texts]
    look_up("text, raw", asked, torch.cat([pipe.encoder.encode_text([t]) for _, t in texts]), plain)
    for name, own in [(AS_IT_IS, pipe), *((r.name, build(r, pipe, prior)) for r in rungs if r.name != RAW)]:
        encoder = own.condition_encoder
        embeds = encoder.centre(
            torch.stack([own.encode_conditions([Prompt(t)], 1)[0].embedding for _, t in texts]).to(
                encoder.device
            ),
            "text",
        )
        look_up(f"text, {name}", asked, embeds, centred(plain, encoder))

    # Images.
    splits: list[Split] = ["validation", "dev"] if setting.options.prepared else ["validation"]
    for split in splits:
        clips = list(read_clips(setting.options.clips, setting.labels(split)))
        asked = [clip.label for clip in clips]
        embeds = torch.cat([pipe.encoder.encode_image([clip.frame]) for clip in clips])
        encoder = pipe.condition_encoder
        look_up(f"image, {split}, raw", asked, embeds, plain)
        look_up(f"image, {split}, centred", asked, encoder.centre(embeds, "image"), centred(plain, encoder))
    return setting.write("ceiling", {"bundle": str(bundle), "k": k}, results, _table(results, k))


def _row(found: np.ndarray, asked: Sequence[str], resamples: int) -> dict[str, Any]:
    picks, every = draw_picks(asked, resamples), range(len(asked))
    return {
        "share": mean_figure(shares(found, asked), every, picks),
        "majority": mean_figure(majorities(found, asked), every, picks),
        "per_class": per_class(shares(found, asked), asked),
        "queries": len(asked),
    }


def _table(results: Mapping[str, Mapping[str, Any]], k: int) -> str:
    def of(row: Mapping[str, Any], name: str) -> Figure:
        figure: Figure = row[name]
        return figure

    head = ["Query, space", f"share of {k}", f"most of {k}", "N"]
    rows = [
        [name, cell(of(row, "share"), percent), cell(of(row, "majority"), percent), str(row["queries"])]
        for name, row in results.items()
    ]
    classes = sorted({label for row in results.values() for label in row["per_class"]})
    by_class = [
        [
            label,
            *(
                percent(row["per_class"][label]) if label in row["per_class"] else "–"
                for row in results.values()
            ),
        ]
        for label in classes
    ]
    notes = [
        f"Of the {k} training images nearest to a query by cosine: the mean share that is of its class, and how often most are. raw: embeddings as the encoder gives them; "
        "the others: each kind less its mean, texts as the named rung of `clipsynth study ladder` moves them. In brackets: 95 % of resamples of queries within classes.",
        "",
        f"The share of {k}, by class:",
        "",
    ]
    return table(head, rows, [*notes, table(["Class", *results], by_class, [])])
