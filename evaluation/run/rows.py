"""Rows of the table: the samples of each system, their sounds and their figures."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress

from evaluation.embedders.base import Embedder, JudgingEmbedder, TextEmbedder
from evaluation.embedders.classifier import SoundClassifier
from evaluation.embedders.linear_judge import LinearJudge
from evaluation.interfaces import QueryKind, Synthesizer
from evaluation.metrics.bootstrap import Figure, difference, gap_closed, mean_figure
from evaluation.metrics.class_accuracy import hits
from evaluation.plan import Plan, Sample
from evaluation.run import scores
from evaluation.run.feature_cache import Features
from evaluation.run.scores import Reference, TableRow
from evaluation.run.sound_cache import SoundStore
from evaluation.systems.external import Folder
from evaluation.systems.recordings import Recordings, floor_samples
from models.retrieval.copy_distance import Search, pick, relative, to_other_sources

KINDS: tuple[QueryKind, ...] = ("text", "image", "clip")
REAL, FLOOR, TRAIN = "real validation clips", "real training clips (floor)", "training clips"
TRAIN_EXTRA_S = 1.0  # the search for copies looks at this much more of a training clip than a sound's length
Gaps = dict[str, dict[str, dict[str, Figure]]]  # {system: {metric: {"gap" and maybe "closed": figure}}}


@dataclass(frozen=True)
class Entry:
    """A system and the samples that it answers: a row of the table before it is scored.

    Attributes:
        sets: for each seed the samples that answer the plan's clips, in their order; for distances.
        judged: samples for class accuracy; empty if the judge was trained on these very sounds.
        folder: results; sounds/ is below it.
    """

    system: Synthesizer
    kind: QueryKind
    sets: list[list[Sample]]
    judged: list[Sample]
    folder: Path

    @property
    def in_sets(self) -> list[Sample]:
        """The samples for distances, set after set."""
        return [sample for samples in self.sets for sample in samples]

    @property
    def samples(self) -> list[Sample]:
        """All samples, those for distances first."""
        return list({s.stem: s for s in [*self.in_sets, *self.judged]}.values())

    @property
    def distinct(self) -> int:
        return len({self.store.path(s) for s in self.samples})

    @property
    def store(self) -> SoundStore:
        return SoundStore(self.folder / "sounds", self.system)

    @property
    def set_features(self) -> Features:
        """Features of all sets, one after the other."""
        return Features(self.store, self.in_sets)

    @property
    def judged_features(self) -> Features:
        """Features of the judged samples."""
        return Features(self.store, self.judged)

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Return features (S * N, …) of `set_features`, set by set."""
        return list(values.reshape(len(self.sets), -1, *values.shape[1:]))


class EvaluationContext:
    """Makes the entries of a plan, with all files below one folder."""

    def __init__(self, folder: Path, plan: Plan, clips: Path) -> None:
        self.folder, self.plan, self.clips = folder, plan, clips

    def entry(self, system: Synthesizer, kind: QueryKind) -> Entry:
        """Return the entry of a system for one kind of query."""
        samples = self.plan.samples(kind)
        sets = [self.plan.for_distances(samples, turn) for turn in range(self.plan.seeds)]
        # A clip's phrase changes with the seed, its image does not.
        if system.deterministic and kind != "text":
            sets = sets[:1]
        return Entry(system, kind, sets, self.plan.for_class_accuracy(samples), self.folder)

    def real(self) -> Entry:
        return self.entry(Recordings(REAL, self.clips), "clip")

    def floor(self, train: Mapping[str, str]) -> Entry:
        """Return the entry of training clips with the classes of the validation clips.

        Its distances are those between two sets of real sounds.
        """
        wanted = [clip.label for clip in self.plan.clips]
        samples = floor_samples(wanted, train, self.plan.seeds, self.plan.duration_s)
        sets = [samples[n : n + len(wanted)] for n in range(0, len(samples), len(wanted))]
        return Entry(Recordings(FLOOR, self.clips), "clip", sets, [], self.folder)

    def training_clips(self, train: Mapping[str, str]) -> Entry:
        """Return the entry of all training clips, for the search for copies; it is no row of the table."""
        samples = floor_samples(list(train.values()), train, 1, self.plan.duration_s + TRAIN_EXTRA_S)
        return Entry(Recordings(TRAIN, self.clips), "clip", [samples], [], self.folder)


def make_sounds(entries: Sequence[Entry], batch_size: int) -> None:
    """Make all missing sounds, with a progress bar for each entry.

    Raises:
        ValueError: a system cannot answer a query, or returned something that is no sound.
    """
    with Progress() as progress:
        bars = [progress.add_task(f"{e.system.name} · {e.kind}", total=len(e.samples)) for e in entries]
        for entry, bar in zip(entries, bars, strict=True):

            def advance(done: int, bar: int = int(bar)) -> None:
                progress.update(bar, completed=done)  # type: ignore[arg-type]

            entry.store.make(entry.samples, batch_size=batch_size, on_progress=advance)


def write_queries(path: Path, plan: Plan, kinds: Sequence[QueryKind]) -> None:
    """Write the queries as a CSV, for systems that run elsewhere.

    With a column `file` added, it is the manifest.csv of a system of the kind `folder`.
    """
    with path.open("w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["kind", "clip", "seed", "label", "prompt", "duration_s"])
        for kind in kinds:
            for s in plan.samples(kind):
                q = s.query
                rows.writerow([kind, q.clip, s.seed, q.label, q.prompt or "", q.duration_s])


def make_reference(
    context: EvaluationContext,
    judge: SoundClassifier,
    embedders: Sequence[Embedder],
    images: Sequence[Embedder] = (),
    *,
    batch_size: int,
    resamples: int,
    train: Mapping[str, str] | None,
    sources: Mapping[str, frozenset[str]],
) -> Reference:
    """Return the validation clips' own sounds and the training clips' mels, which rows are compared with.

    Args:
        train: {file: class} of the training clips; None leaves out the search for copies.
        sources: {file: the recordings that its sound was made of}.
    """
    real, plan = context.real(), context.plan
    make_sounds([real], batch_size)
    search, apart, linear_judges = None, np.zeros((0, 0)), {}
    if train is not None:
        training = context.training_clips(train)
        make_sounds([training], batch_size)
        mels = list(training.set_features.small_mels())
        length = round(len(mels[0]) * plan.duration_s / (plan.duration_s + TRAIN_EXTRA_S))
        search, picked = Search(mels), pick(mels, length)
        distances = search.distances([mels[i][:length] for i in picked])
        apart = to_other_sources(distances, picked, [sources[s.query.clip] for s in training.in_sets])
        classes = [s.query.label for s in training.in_sets]
        linear_judges = {
            e.name: LinearJudge(training.set_features.embeds(e), classes)
            for e in embedders
            if isinstance(e, JudgingEmbedder) and e.judges
        }
    return Reference(
        labels=[clip.label for clip in plan.clips],
        embedders=embedders,
        embeds={e.name: real.set_features.embeds(e) for e in [*embedders, *images]},
        images=images,
        judge=judge,
        training=search,
        training_apart=apart,
        linear_judges=linear_judges,
        resamples=resamples,
    )


def score(entry: Entry, reference: Reference, plan: Plan, *, rtf_clips: int) -> TableRow:
    """Return all figures of an entry; without distances for the validation clips themselves."""
    system = entry.system
    query = "–" if entry.kind == "clip" else entry.kind
    flags = (system.training_query, system.generative, system.unlabeled)
    row = TableRow(system.name, query, *flags, entry.distinct)
    if not (isinstance(system, Recordings) and entry.judged):
        row.figures |= _distances(entry, reference)
    if entry.judged:
        _judge(entry, reference, plan, row)
    row.checks = scores.level_checks(entry.set_features.levels(), plan.duration_s)
    if rtf_clips and not isinstance(system, (Recordings, Folder)):
        row.figures["RTF"] = scores.seconds_figure(time_alone(entry, rtf_clips))
    return row


def _distances(entry: Entry, reference: Reference) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    features, picks = entry.set_features, reference.picks()
    for embedder in reference.embedders:
        sets, real = entry.split(features.embeds(embedder)), reference.embeds[embedder.name]
        found |= scores.distance_figures(embedder.name, sets, real, reference)
        found |= scores.manifold_figures(embedder.name, sets, real, reference)
    for network in reference.images:
        sets, real = entry.split(features.embeds(network)), reference.embeds[network.name]
        found[f"FID/{network.name}"] = scores.fad_figure(sets, real, picks)
    return found


def _judge(entry: Entry, reference: Reference, plan: Plan, row: TableRow) -> None:
    """Add class accuracy, copies, and the relevance of text queries to a row."""
    clip_at = {clip.file: i for i, clip in enumerate(plan.clips)}
    queries = [s.query for s in entry.judged]
    labels, clip_of = [q.label for q in queries], [clip_at[q.clip] for q in queries]
    probabilities = entry.judged_features.probabilities(reference.judge)
    figures, row.per_class, worst = scores.judged_figures(reference, probabilities, labels, clip_of)
    row.figures |= figures
    row.worst = [entry.judged[i] for i in worst]
    if reference.training is not None:
        apart = reference.training.distances(list(entry.set_features.small_mels()))
        row.nearest, row.relative = apart.min(1), relative(apart)
        row.closest = [entry.in_sets[i] for i in np.argsort(row.nearest, kind="stable")[:10]]
        row.figures |= scores.copy_figures(
            reference, row.nearest, [clip_at[s.query.clip] for s in entry.in_sets]
        )
    for embedder in reference.embedders:
        if (linear := reference.linear_judges.get(embedder.name)) is not None:
            found = linear.probabilities(entry.judged_features.embeds(embedder))
            accuracy = mean_figure(hits(found, linear.labels, labels), clip_of, reference.picks())
            row.figures[f"class_accuracy@1/{embedder.name}"] = accuracy
        if isinstance(embedder, TextEmbedder) and entry.kind == "text":
            prompts, embeds = [q.prompt or "" for q in queries], entry.judged_features.embeds(embedder)
            relevance = scores.text_relevance(embedder, embeds, prompts, clip_of, reference.picks())
            row.figures[f"relevance/{embedder.name}"] = relevance


def time_alone(entry: Entry, count: int) -> list[float]:
    """Return seconds per second of sound of `count` queries, one at a time, after one that is not counted."""
    found = []
    samples = entry.sets[0]
    for sample in [samples[0], *samples[:count]]:
        started = time.perf_counter()
        entry.system.synthesize([sample.query], [sample.seed])
        found.append((time.perf_counter() - started) / sample.query.duration_s)
    return found[1:]


def text_gaps(rows: Sequence[TableRow], metrics: Sequence[str], baseline: str) -> Gaps:
    """Return M_text - M_image of each system, and the per cent of the baseline's gap that it closes.

    Systems without both kinds of query are left out.
    """
    by_query = {(row.system, row.query): row.figures for row in rows}
    gaps: Gaps = {}
    for system in dict.fromkeys(row.system for row in rows):
        if {(system, "text"), (system, "image")} <= by_query.keys():
            text, image = by_query[system, "text"], by_query[system, "image"]
            shared = [m for m in metrics if m in text and m in image]
            gaps[system] = {m: {"gap": difference(text[m], image[m])} for m in shared}
    for system, found in gaps.items():
        for metric, by_name in found.items():
            base = gaps.get(baseline, {}).get(metric, {}).get("gap")
            if system != baseline and base is not None and base.value != 0:
                by_name["closed"] = gap_closed(by_name["gap"], base)
    return gaps
