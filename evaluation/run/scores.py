"""The figures of one row: a system asked in words, by images, or for the clips themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluation.embedders.base import Embedder, TextEmbedder
from evaluation.embedders.classifier import SoundClassifier
from evaluation.embedders.linear_judge import LinearJudge
from evaluation.metrics.bootstrap import Figure, bootstrap, draw_picks, figure, mean_figure
from evaluation.metrics.class_accuracy import asked_probability, hits, per_class
from evaluation.metrics.density_coverage import K, coverage, density, inside
from evaluation.metrics.frechet import MIN_CLIPS, frechet_distance, frechet_infinity
from evaluation.metrics.kernel import SCALE, median_bandwidth, mmd2, rbf
from evaluation.plan import Sample
from models.retrieval.copy_distance import Search, copy_distance


@dataclass(frozen=True)
class Reference:
    """What rows are compared with.

    Attributes:
        labels: class of each of the N validation clips.
        embeds: {embedder: (N, F, D)} of their own sounds. images: the same of their rendered mels.
        linear_judges: by embedder, classifiers on its vectors of the training clips.
        training: the training clips' small log-mels, None where copies are not looked for. training_apart: (S, T), distances of some of them to those of other sources.
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

    def picks(self, resamples: int | None = None) -> np.ndarray:
        """Return the bootstrap's (resamples, N) places of clips, the same at every call."""
        return draw_picks(self.labels, self.resamples if resamples is None else resamples)


@dataclass
class TableRow:
    """A row of the table: `figures` by printed name; `per_class` agreement; `worst`: the samples least like what was asked; `nearest`: distances of its sounds to the
    nearest training clip, `relative` the same over those to others (`models.novelty.relative`), and `closest` the samples with the least of them."""

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
    """Return the Fréchet distance of embeddings: the mean over `sets`, one (N, F, D) for each seed, against `real` (N, F, D)."""
    return bootstrap(
        lambda places: float(
            np.mean([frechet_distance(_flat(x[places]), _flat(real[places])) for x in sets])
        ),
        picks,
    )


def kad_figure(sets: Sequence[np.ndarray], real: np.ndarray, picks: np.ndarray) -> Figure:
    """Return the kernel distance of embeddings, shapes as in `fad_figure`."""
    frames, width = real.shape[1], median_bandwidth(_flat(real))
    k_real = rbf(_flat(real), _flat(real), width)
    kernels = [(rbf(_flat(x), _flat(x), width), rbf(_flat(x), _flat(real), width)) for x in sets]

    def kad(places: np.ndarray) -> float:
        at = (places[:, None] * frames + np.arange(frames)).ravel()
        square = np.ix_(at, at)
        return SCALE * float(
            np.mean([mmd2(k_x[square], k_real[square], k_xy[square]) for k_x, k_xy in kernels])
        )

    return bootstrap(kad, picks)


def distance_figures(
    name: str, sets: Sequence[np.ndarray], real: np.ndarray, reference: Reference
) -> dict[str, Figure]:
    """Return FAD, KAD and for the first embedder FAD∞, shapes as in `fad_figure`."""
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
    """Return coverage and density by clip means, the mean over seeds; none where there are too few clips for neighbours."""
    if len(real) <= K:
        return {}
    within = [inside(x.mean(1), real.mean(1)) for x in sets]
    return {
        f"{metric.__name__}/{name}": bootstrap(
            lambda places, metric=metric: float(np.mean([metric(w[np.ix_(places, places)]) for w in within])),  # type: ignore[misc]
            reference.picks(),
        )
        for metric in (coverage, density)
    }


def judged_figures(
    reference: Reference, probabilities: np.ndarray, asked: Sequence[str], clip_of: Sequence[int]
) -> tuple[dict[str, Figure], dict[str, float], list[int]]:
    """Return agreement and relevance by the judge, agreement by class, and the ten samples that it finds least of what was asked in."""
    labels, picks = reference.judge.labels, reference.picks()
    probable = asked_probability(probabilities, labels, asked)
    top1 = hits(probabilities, labels, asked)
    figures = {
        "agreement@1/classifier": mean_figure(top1, clip_of, picks),
        "agreement@5/classifier": mean_figure(hits(probabilities, labels, asked, 5), clip_of, picks),
        "relevance/classifier": mean_figure(probable, clip_of, picks),
    }
    return figures, per_class(top1, asked), [int(i) for i in np.argsort(probable, kind="stable")[:10]]


def linear_figures(
    name: str,
    judge: LinearJudge,
    embeds: np.ndarray,
    asked: Sequence[str],
    clip_of: Sequence[int],
    picks: np.ndarray,
) -> dict[str, Figure]:
    """Return how often a linear judge hears the requested class in sounds with embeddings (N, F, D)."""
    top1 = hits(judge.probabilities(embeds), judge.labels, asked)
    return {f"agreement@1/{name}": mean_figure(top1, clip_of, picks)}


def copy_figures(reference: Reference, nearest: np.ndarray, clip_of: Sequence[int]) -> dict[str, Figure]:
    """Return of distances to the nearest training clip their mean, and the share of copies."""
    picks = reference.picks()
    return {
        "novelty/mel": mean_figure(nearest, clip_of, picks),
        "copies/mel": mean_figure(nearest < reference.copy_threshold, clip_of, picks),
    }


def text_relevance(
    embedder: TextEmbedder,
    embeds: np.ndarray,
    prompts: Sequence[str],
    clip_of: Sequence[int],
    picks: np.ndarray,
) -> Figure:
    """Return the mean cosine of sounds (N, F, D), by their mean over F, and the texts they were asked for in."""
    sounds, texts = embeds.mean(1), embedder.embed_text(prompts)
    cosine = (sounds * texts).sum(1) / np.maximum(
        np.linalg.norm(sounds, axis=1) * np.linalg.norm(texts, axis=1), 1e-9
    )
    return mean_figure(cosine, clip_of, picks)


def level_checks(levels: dict[str, np.ndarray], duration_s: float) -> dict[str, float]:
    """Return of a row's sounds: the largest error of duration in seconds, median loudness and its 5th and 95th percentile in dB, shares that are silent or clipped."""
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
    """Return the median with the range as its interval; of few timings there is no better one."""
    return Figure(float(np.median(seconds)), min(seconds), max(seconds), np.empty(0))
