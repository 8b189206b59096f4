"""The ceiling that the encoder sets: how often the training pictures nearest to a query are of its class. No sound is made.

A generator that knows a query only by its embedding cannot be expected to answer with the right class more often than the pictures around that embedding have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.agreement import per_class, read_phrases
from evaluation.bundles import load_pipeline
from evaluation.clips import read_clips, read_labels
from evaluation.interval import Figure, draw_picks, mean_figure
from evaluation.studies.setting import Setting, Split, suffixes, table
from evaluation.table import cell, percent
from models.condition_encoder import ConditionEncoder, Kind
from models.index import Index
from models.pipeline import ClipSynthPipeline

SPACES = ("raw", "centred", "projected")
K = 5


def in_space(embeds: torch.Tensor, kind: Kind, encoder: ConditionEncoder, space: str) -> torch.Tensor:
    """Return embeddings (N, D) as they come ("raw"), as the generator's bundle centres them, or with texts moved to the bank of pictures too ("projected")."""
    if space == "raw":
        return embeds
    return (
        encoder.centre(embeds, kind)
        if space == "projected"
        else encoder.changed(bank_share=0.0).centre(embeds, kind)
    )


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


def labelled_index(index: Index, labels: Mapping[str, str], encoder: ConditionEncoder, space: str) -> Index:
    """Return the clips of an index whose video has a label, with it, in a space of embeddings.

    Raises:
        ValueError: none has one.
    """
    by_name = {name: label for file, label in labels.items() for name in suffixes(file)}
    kept = [n for n, clip in enumerate(index.clips) if clip["video"] in by_name]
    if not kept:
        raise ValueError("the labels name none of the bundle's training videos")
    clips = [index.clips[n] | {"label": by_name[index.clips[n]["video"]]} for n in kept]
    embeds = in_space(index.embeds[kept], "image", encoder, space)
    return Index(torch.nn.functional.normalize(embeds, dim=-1), clips)


def encode_queries(
    setting: Setting, pipe: ClipSynthPipeline
) -> dict[str, tuple[Kind, list[str], torch.Tensor]]:
    """Return {name: (kind, classes, embeddings (N, D))} of all phrases, and of the middle frames of dev and of validation clips."""
    phrases = read_phrases(setting.options.queries)
    texts = [(label, text) for label, every in phrases.items() for text in every]
    found: dict[str, tuple[Kind, list[str], torch.Tensor]] = {
        "text": ("text", [label for label, _ in texts], torch.stack([pipe._embed(t)[0] for _, t in texts]))
    }
    splits: list[Split] = ["validation", *(["dev"] if setting.options.prepared else [])]  # type: ignore[list-item]
    for split in splits:
        clips = list(read_clips(setting.options.clips, setting.labels(split)))
        embeds = torch.cat([pipe.encoder.encode_image([clip.frame]).cpu() for clip in clips])
        found[f"image, {split}"] = ("image", [clip.label for clip in clips], embeds)
    return found


@torch.inference_mode()
def ceiling(setting: Setting, bundle: Path, k: int = K) -> str:
    """Write and return the table: for each kind of query and space the share of the k nearest training pictures that are of its class, and how often most are.

    Raises:
        ValueError: the bundle lists no training clips, or labels that cannot be used.
    """
    pipe = load_pipeline(str(bundle))
    if pipe.index is None:
        raise ValueError(f"{bundle} has no retrieval index (index.safetensors)")
    train = read_labels(setting.options.label_file, "train")
    encoder = pipe.condition_encoder
    indices = {space: labelled_index(pipe.index, train, encoder, space) for space in SPACES}
    results: dict[str, Any] = {}
    for name, (kind, asked, embeds) in encode_queries(setting, pipe).items():
        for space in SPACES if kind == "text" else SPACES[:2]:
            found = neighbours(indices[space], in_space(embeds, kind, encoder, space), k)
            results[f"{name}, {space}"] = _row(found, asked, setting.options.resamples)
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
        f"Of the {k} training pictures nearest to a query by cosine: the mean share that is of its class, and how often most are. raw: embeddings as the encoder gives them; "
        "centred: each kind less its mean; projected: texts moved to the bank of pictures as the bundle has it. In brackets: 95 % of resamples of queries within classes.",
        "",
        f"The share of {k}, by class:",
        "",
    ]
    return table(head, rows, [*notes, table(["Class", *results], by_class, [])])
