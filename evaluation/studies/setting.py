"""What all studies have: labelled clips of one split, a judge, sounds kept on disk, and where their results go."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import Progress

from evaluation.clips import read_clips, read_labels
from evaluation.embedders.base import Classifier
from evaluation.embedders.classifier import SoundClassifier
from evaluation.embedders.judge import claim, get_classifier
from evaluation.interfaces import QueryKind, Synthesizer
from evaluation.metrics.bootstrap import Figure
from evaluation.metrics.class_accuracy import read_phrases
from evaluation.plan import Plan, Sample
from evaluation.run.entries import Entry, EvaluationContext, make_sounds
from evaluation.run.feature_cache import Features
from evaluation.run.rows import time_alone
from evaluation.run.scores import Reference, fad_figure, judged_figures, kad_figure, seconds_figure
from evaluation.run.sound_cache import SoundStore

Split = Literal["dev", "validation"]
DEV_SEED = 1_000_000  # first seed of sounds for choices; the report's count from 0
FAD, KAD, AGREEMENT, SECONDS = "FAD/classifier", "KAD/classifier", "agreement@1/classifier", "seconds"


@dataclass(frozen=True)
class StudyOptions:
    """What studies are asked for; the help of `clipsynth study` says what each is."""

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


class Setting:
    """The clips of a split as queries, and figures of systems that are asked them."""

    def __init__(self, options: StudyOptions) -> None:
        """Claim the folder of results for these clips.

        Raises:
            ValueError: labels that cannot be used, or another folder's results in `out`.
        """
        self.options = options
        claim(options.out, options.clips, options.label_file)

    def labels(self, split: Split) -> dict[str, str]:
        """Return {file: class} of a split.

        Raises:
            ValueError: for "dev", nothing says which training videos were held out.
        """
        if split == "validation":
            return read_labels(self.options.label_file, split)
        train, held_out = read_labels(self.options.label_file, "train"), self._held_out()
        return {file: label for file, label in train.items() if held_out & suffixes(file)}

    def training_labels(self) -> dict[str, str]:
        """Return {file: class} of the training videos that were not held out; of all where nothing says which."""
        train = read_labels(self.options.label_file, "train")
        if self.options.prepared is None:
            return train
        held_out = self._held_out()
        return {file: label for file, label in train.items() if not held_out & suffixes(file)}

    def _held_out(self) -> set[str]:
        index = (self.options.prepared or Path("?")) / "index.jsonl"
        if not index.is_file():
            raise ValueError(
                "--split dev needs --prepared FOLDER, whose index says which videos are held out"
            )
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
        """The judge in `options.judge`, or one kept in `options.out`, trained first where there is none."""
        o = self.options
        if o.judge is not None:
            claim(o.judge, o.clips, o.label_file)
        return get_classifier(o.judge or o.out, o.clips, o.label_file)

    @cached_property
    def bench(self) -> EvaluationContext:
        return EvaluationContext(self.options.out, self.plan, self.options.clips)

    @cached_property
    def reference(self) -> Reference:
        """The split's own sounds as the judge hears them; nothing is searched for copies here."""
        embedder, real = Classifier(self.judge), self.bench.real()
        make_sounds([real], self.options.batch_size)
        return Reference(
            labels=[clip.label for clip in self.plan.clips],
            embedders=[embedder],
            embeds={embedder.name: real.compared.embeds(embedder)},
            images=[],
            judge=self.judge,
            training=None,
            training_apart=np.zeros((0, 0)),
            resamples=self.options.resamples,
        )

    def entry(self, system: Synthesizer, kind: QueryKind) -> Entry:
        """Return the system's answers to one kind of query; those that are missing are made."""
        entry = self.bench.asked(system, kind)
        make_sounds([entry], self.options.batch_size)
        return entry

    def heard(self, system: Synthesizer, samples: Sequence[Sample]) -> tuple[SoundStore, np.ndarray]:
        """Return where the system's answers to samples beside the plan's lie, those that are missing made, and what the judge hears in them (N, C)."""
        store = SoundStore(self.options.out / "sounds", system)
        with Progress() as progress:
            bar = progress.add_task(system.name, total=len(samples))
            store.make(
                samples,
                batch_size=self.options.batch_size,
                on_progress=lambda done: progress.update(bar, completed=done),
            )
        return store, Features(store, samples).probabilities(self.judge)

    def figures(self, system: Synthesizer, kind: QueryKind) -> dict[str, Figure]:
        """Return FAD, KAD, agreement, relevance and seconds for one sound of a system asked by `kind`."""
        entry, reference = self.entry(system, kind), self.reference
        [embedder] = reference.embedders
        sets, real = entry.split(entry.compared.embeds(embedder)), reference.embeds[embedder.name]
        clip_at = {clip.file: i for i, clip in enumerate(self.plan.clips)}
        asked = [s.query for s in entry.judged]
        found, _, _ = judged_figures(
            reference,
            entry.heard.probabilities(self.judge),
            [q.label for q in asked],
            [clip_at[q.clip] for q in asked],
        )
        found |= {
            FAD: fad_figure(sets, real, reference.picks()),
            KAD: kad_figure(sets, real, reference.picks()),
        }
        return found | self.seconds(entry)

    def seconds(self, entry: Entry) -> dict[str, Figure]:
        """Return the median seconds of a sound asked for alone, or nothing where nothing is to be timed."""
        timed = min(self.options.timed, len(entry.sets[0]))
        if not timed:
            return {}
        duration = self.options.duration_s
        return {SECONDS: seconds_figure([duration * t for t in time_alone(entry, timed)])}

    def write(self, name: str, settings: Mapping[str, Any], results: Any, table: str) -> str:
        """Write `out/NAME/results.json` and `results.md` and return the table."""
        folder = self.options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        everything = {"settings": {**_plain(asdict(self.options)), **settings}, "results": _plain(results)}
        (folder / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
        (folder / "results.md").write_text(table + "\n")
        return table

    def note(self) -> str:
        """Return the line that a table's reader must know."""
        o, plan = self.options, self.plan
        seeds = (
            f"seeds from {plan.first_seed}, none of the report's"
            if o.split == "dev"
            else "the report's seeds"
        )
        where = (
            "dev clips (held out of the generator's training; the judge was trained with their labels)"
            if o.split == "dev"
            else "validation clips"
        )
        return (
            f"{len(plan.clips)} {where}, each asked for {plan.seeds} times, {seeds}. In brackets: 95 % of {o.resamples} bootstrap resamples "
            "of clips within classes; for seconds the range."
        )


def suffixes(file: str) -> set[str]:
    """Return "a/b.mp4" and "b.mp4" for "a/b.mp4": a video's name from each folder above it."""
    parts = Path(file).parts
    return {"/".join(parts[i:]) for i in range(len(parts))}


def table(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Return a Markdown table; the first column is text, the others numbers."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "|---" + "|---:" * (len(head) - 1) + "|")
    return "\n".join([*lines, "", *notes])


def _plain(value: Any) -> Any:
    """Return a value of JSON: figures as value and interval, paths as text, numbers of numpy as Python's."""
    if isinstance(value, Figure):
        return _plain(value.as_dict())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return value.as_posix()
    return value.item() if isinstance(value, np.generic) else value
