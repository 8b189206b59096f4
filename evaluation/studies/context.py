"""The shared part of all studies: labelled clips of one split, a judge, and the figures of a system."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from evaluation.clips import read_clips, read_labels, read_sources
from evaluation.embedders.base import Classifier
from evaluation.embedders.classifier import SoundClassifier, claim, get_classifier
from evaluation.interfaces import QueryKind, Synthesizer
from evaluation.metrics.bootstrap import Figure
from evaluation.metrics.class_accuracy import read_phrases
from evaluation.plan import Plan, Sample
from evaluation.run.rows import Entry, EvaluationContext, make_reference, time_alone
from evaluation.run.scores import Reference, fad_figure, judged_figures, kad_figure, seconds_figure

Split = Literal["dev", "validation"]
DEV_SEED = 1_000_000  # first seed of sounds for choices; the report's seeds count from 0
TEXT_AND_IMAGE: tuple[QueryKind, ...] = ("text", "image")
FAD, KAD, CLASS_ACCURACY = "FAD/classifier", "KAD/classifier", "class_accuracy@1/classifier"
SECONDS = "seconds"


@dataclass(frozen=True)
class StudyOptions:
    """Options that all studies share; `clipsynth study NAME --help` explains them."""

    clips: Path
    queries: Path
    out: Path
    prepared: Path | None = None
    labels: Path | None = None
    judge: Path | None = None
    split: Split = "dev"
    seeds: int = 3
    per_class: int = 0
    duration_s: float = 4.0
    batch_size: int = 8
    resamples: int = 200
    timed: int = 5

    @property
    def label_file(self) -> Path:
        return self.labels or self.clips / "manifest.csv"


class StudyContext:
    """The clips of a split as queries, and the figures of systems that answer them."""

    def __init__(self, options: StudyOptions) -> None:
        """Claim the folder of results for these clips.

        Raises:
            ValueError: the labels cannot be used, or `out` holds results of other clips.
        """
        self.options = options
        self._references: dict[bool, Reference] = {}
        claim(options.out, options.clips, options.label_file)

    def labels(self, split: Split) -> dict[str, str]:
        """Return {file: class} of a split.

        Raises:
            ValueError: the split is "dev" and no prepared folder lists the held-out training videos.
        """
        if split == "validation":
            return read_labels(self.options.label_file, split)
        train, held_out = read_labels(self.options.label_file, "train"), self._held_out()
        return {file: label for file, label in train.items() if held_out & suffixes(file)}

    def training_labels(self) -> dict[str, str]:
        """Return {file: class} of the training videos without the held-out ones, if these are known."""
        train = read_labels(self.options.label_file, "train")
        if self.options.prepared is None:
            return train
        held_out = self._held_out()
        return {file: label for file, label in train.items() if not held_out & suffixes(file)}

    def _held_out(self) -> set[str]:
        index = (self.options.prepared or Path("?")) / "index.jsonl"
        if not index.is_file():
            raise ValueError("--split dev needs --prepared FOLDER: its index lists the held-out videos")
        lines = map(json.loads, index.read_text().splitlines())
        found = {line["video"] for line in lines if line["dev"]}
        if not found:
            raise ValueError(f"{index} holds out no video")
        return found

    @cached_property
    def plan(self) -> Plan:
        o = self.options
        first_seed = DEV_SEED if o.split == "dev" else 0
        clips = list(read_clips(o.clips, self.labels(o.split)))
        return Plan(clips, read_phrases(o.queries), o.seeds, o.per_class, o.duration_s, first_seed)

    @cached_property
    def judge(self) -> SoundClassifier:
        """The judge in `options.judge`, else the one in `options.out`, which is trained at first use."""
        o = self.options
        if o.judge is not None:
            claim(o.judge, o.clips, o.label_file)
        return get_classifier(o.judge or o.out, o.clips, o.label_file)

    @cached_property
    def evaluation(self) -> EvaluationContext:
        return EvaluationContext(self.options.out, self.plan, self.options.clips)

    def reference(self, *, search_copies: bool = False) -> Reference:
        """Return the recordings of the split, if asked with the training clips to search for copies."""
        if search_copies not in self._references:
            self._references[search_copies] = make_reference(
                self.evaluation,
                self.judge,
                [Classifier(self.judge)],
                batch_size=self.options.batch_size,
                resamples=self.options.resamples,
                train=self.training_labels() if search_copies else None,
                sources=read_sources(self.options.label_file),
            )
        return self._references[search_copies]

    def entry(self, system: Synthesizer, kind: QueryKind) -> Entry:
        """Return the entry of a system with the plan's queries of one kind."""
        return self.evaluation.entry(system, kind)

    def entry_for(self, system: Synthesizer, samples: Sequence[Sample]) -> Entry:
        """Return the entry of a system with other samples than the plan's."""
        return Entry(system, "text", [list(samples)], list(samples), self.options.out)

    def figures(self, entry: Entry) -> dict[str, Figure]:
        """Return FAD, KAD, class accuracy, relevance and seconds per sound of an entry of the plan."""
        reference = self.reference()
        [embedder] = reference.embedders
        sets, real = entry.split(entry.set_features.embeds(embedder)), reference.embeds[embedder.name]
        clip_at = {clip.file: i for i, clip in enumerate(self.plan.clips)}
        queries = [s.query for s in entry.judged]
        probabilities = entry.judged_features.probabilities(self.judge)
        labels, clip_of = [q.label for q in queries], [clip_at[q.clip] for q in queries]
        found, _, _ = judged_figures(reference, probabilities, labels, clip_of)
        picks = reference.picks()
        found |= {FAD: fad_figure(sets, real, picks), KAD: kad_figure(sets, real, picks)}
        return found | self.seconds(entry)

    def seconds(self, entry: Entry) -> dict[str, Figure]:
        """Return the median seconds per sound, one query at a time; empty if `options.timed` is 0."""
        timed = min(self.options.timed, len(entry.sets[0]))
        if not timed:
            return {}
        duration = self.options.duration_s
        return {SECONDS: seconds_figure([duration * t for t in time_alone(entry, timed)])}

    def note(self) -> str:
        """Return a note on clips, seeds and intervals for the reader of a table."""
        o, plan = self.options, self.plan
        where, seeds = "validation clips", "the report's seeds"
        if o.split == "dev":
            where = "dev clips (not in the generator's training data; the judge was trained on them)"
            seeds = f"seeds from {plan.first_seed}, which the report does not use"
        return (
            f"{len(plan.clips)} {where}, {plan.seeds} sounds for each, {seeds}. In brackets: 95 % of "
            f"{o.resamples} bootstrap resamples of clips within classes; for seconds the range."
        )


def suffixes(file: str) -> set[str]:
    """Return every end of a path, for example "a/b.mp4" and "b.mp4" for "a/b.mp4"."""
    parts = Path(file).parts
    return {"/".join(parts[i:]) for i in range(len(parts))}
