"""The figures of one row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from evaluation.embedders.base import Embedder, TextEmbedder
from evaluation.embedders.classifier import SoundClassifier
from evaluation.embedders.linear_judge import LinearJudge
from evaluation.metrics.bootstrap import Figure, bootstrap, draw_picks, figure, mean_figure
from evaluation.metrics.class_accuracy import hits, per_class, wanted_probability
from evaluation.metrics.density_coverage import K, coverage, density, inside
from evaluation.metrics.frechet import MIN_CLIPS, frechet_distance, frechet_infinity
from evaluation.metrics.kernel import SCALE, median_bandwidth, mmd2, rbf
from evaluation.plan import Sample
from models.retrieval.copy_distance import Search, copy_distance


@dataclass(frozen=True)
class Reference:
    """Validation clips and training clips that rows are compared with.

    Attributes:
        labels: class of each of the N validation clips.
        embeds: {embedder: (N, F, D)} of their own sounds.
        images: embedders of rendered mels.
        linear_judges: by embedder, classifiers on its vectors of the training clips.
        training: search among the training clips; None if copies are not searched.
        training_apart: (S, T), distances of some training clips to those of other sources.
    """

    labels: Sequence[str]
    embedders: Sequence[Embedder]
    embeds: dict[str, np.ndarray]
    images: Sequence[Embedder]
    judge: SoundClassifier
    training: Search | None
    training_apart: np.ndarray
    resamples: int = 200
    linear_judges: Mapping[str, LinearJudge] = field(default_factory=dict)

    @property
    def copy_threshold(self) -> float:
        """The distance below which a sound counts as a copy."""
        return copy_distance(self.training_apart)

    def picks(self) -> np.ndarray:
        """Return the bootstrap's clip indices (resamples, N), the same at every call."""
        return draw_picks(self.labels, self.resamples)


@dataclass
class TableRow:
    """A row of the table.

    Attributes:
        figures: by printed name. per_class: class accuracy of each class. checks: of `level_checks`.
        worst: the samples with the least probable class by the judge.
        nearest: distances of the sounds to the nearest training clip.
        relative: the same, divided by distances to other clips (`models.retrieval.copy_distance.relative`).
        closest: the samples with the smallest `nearest`.
    """

    system: str
    query: str
    training_query: str
    generative: bool
    unlabeled: bool
    sounds: int
    figures: dict[str, Figure] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)
    checks: dict[str, float] = field(default_factory=dict)
    worst: list[Sample] = field(default_factory=list)
    nearest: np.ndarray = field(default_factory=lambda: np.empty(0))
    relative: np.ndarray = field(default_factory=lambda: np.empty(0))
    closest: list[Sample] = field(default_factory=list)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def fad_figure(sets: Sequence[np.ndarray], real: np.ndarray, picks: np.ndarray) -> Figure:
    """Return the Fréchet distance to `real` (N, F, D), the mean over `sets` of the same shape."""

    def fad(places: np.ndarray) -> float:
        return float(np.mean([frechet_distance(_flat(x[places]), _flat(real[places])) for x in sets]))

    return bootstrap(fad, picks)


def kad_figure(sets: Sequence[np.ndarray], real: np.ndarray, picks: np.ndarray) -> Figure:
    """Return the kernel distance of embeddings, shapes as in `fad_figure`."""
    frames, width = real.shape[1], median_bandwidth(_flat(real))
    k_real = rbf(_flat(real), _flat(real), width)
    kernels = [(rbf(_flat(x), _flat(x), width), rbf(_flat(x), _flat(real), width)) for x in sets]

    def kad(places: np.ndarray) -> float:
        at = (places[:, None] * frames + np.arange(frames)).ravel()
        square = np.ix_(at, at)
        found = [mmd2(k_x[square], k_real[square], k_xy[square]) for k_x, k_xy in kernels]
        return SCALE * float(np.mean(found))

    return bootstrap(kad, picks)


def distance_figures(
    name: str, sets: Sequence[np.ndarray], real: np.ndarray, reference: Reference
) -> dict[str, Figure]:
    """Return FAD, KAD, and FAD∞ by the first embedder; shapes as in `fad_figure`."""
    picks = reference.picks()

    def infinity(places: np.ndarray, **effort: int) -> float:
        return float(np.mean([frechet_infinity(x[places], real[places], **effort) for x in sets]))

    found = {f"FAD/{name}": fad_figure(sets, real, picks)}
    if name == reference.embedders[0].name and len(real) >= 2 * MIN_CLIPS:
        resampled = [infinity(row, points=2, draws=1) for row in picks]
        found[f"FAD∞/{name}"] = figure(infinity(np.arange(len(real))), resampled)
    return found | {f"KAD/{name}": kad_figure(sets, real, picks)}


def manifold_figures(
    name: str, sets: Sequence[np.ndarray], real: np.ndarray, reference: Reference
) -> dict[str, Figure]:
    """Return coverage and density of clip means, the mean over seeds; empty if there are too few clips."""
    if len(real) <= K:
        return {}
    within = [inside(x.mean(1), real.mean(1)) for x in sets]

    def mean_of(metric: Callable[[np.ndarray], float], places: np.ndarray) -> float:
        return float(np.mean([metric(w[np.ix_(places, places)]) for w in within]))

    picks = reference.picks()
    return {f"{m.__name__}/{name}": bootstrap(partial(mean_of, m), picks) for m in (coverage, density)}


def judged_figures(
    reference: Reference, probabilities: np.ndarray, wanted: Sequence[str], clip_of: Sequence[int]
) -> tuple[dict[str, Figure], dict[str, float], list[int]]:
    """Return the judge's figures, class accuracy by class, and the ten samples of least relevance.

    Args:
        probabilities: the judge's, (N, C). wanted: class of each query. clip_of: index of each query's clip.
    """
    labels, picks = reference.judge.labels, reference.picks()
    relevance = wanted_probability(probabilities, labels, wanted)
    top1, top5 = (hits(probabilities, labels, wanted, k) for k in (1, 5))
    figures = {
        "class_accuracy@1/classifier": mean_figure(top1, clip_of, picks),
        "class_accuracy@5/classifier": mean_figure(top5, clip_of, picks),
        "relevance/classifier": mean_figure(relevance, clip_of, picks),
    }
    return figures, per_class(top1, wanted), [int(i) for i in np.argsort(relevance, kind="stable")[:10]]


def copy_figures(reference: Reference, nearest: np.ndarray, clip_of: Sequence[int]) -> dict[str, Figure]:
    """Return the mean distance to the nearest training clip, and the share of copies."""
    picks = reference.picks()
    return {
        "copy_distance/mel": mean_figure(nearest, clip_of, picks),
        "copies/mel": mean_figure(nearest < reference.copy_threshold, clip_of, picks),
    }


def text_relevance(
    embedder: TextEmbedder,
    embeds: np.ndarray,
    prompts: Sequence[str],
    clip_of: Sequence[int],
    picks: np.ndarray,
) -> Figure:
    """Return the mean cosine of sounds (N, F, D), averaged over F, and their prompts."""
    sounds, texts = embeds.mean(1), embedder.embed_text(prompts)
    norms = np.linalg.norm(sounds, axis=1) * np.linalg.norm(texts, axis=1)
    return mean_figure((sounds * texts).sum(1) / np.maximum(norms, 1e-9), clip_of, picks)


def level_checks(levels: dict[str, np.ndarray], duration_s: float) -> dict[str, float]:
    """Return error of duration, percentiles of loudness, and shares of silent and clipped sounds."""
    low, middle, high = np.quantile(levels["rms_dbfs"], [0.05, 0.5, 0.95])
    return {
        "duration_error_s": float(np.abs(levels["seconds"] - duration_s).max()),
        "rms_dbfs": float(middle),
        "rms_dbfs_p5": float(low),
        "rms_dbfs_p95": float(high),
        "silent": float(levels["silent"].mean()),
        "clipped": float(levels["clipped"].mean()),
    }


def seconds_figure(seconds: Sequence[float]) -> Figure:
    """Return the median with the range as its interval: too few timings for a better one."""
    return Figure(float(np.median(seconds)), min(seconds), max(seconds), np.empty(0))
