"""`clipsynth evaluate`: systems x {text, image} queries to results.json, results.md and report.html."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import torch
from rich.progress import track

from evaluation.clips import read_clips, read_labels, read_sources
from evaluation.embedders.base import TextEmbedder, load_embedder
from evaluation.embedders.classifier import SoundClassifier, claim, get_classifier
from evaluation.embedders.mel_images import efficientnet_lite0, inception_v3
from evaluation.interfaces import QueryKind, Sources, Synthesizer, load_system
from evaluation.metrics.class_accuracy import read_phrases
from evaluation.plan import Plan, Sample
from evaluation.report.html import Player, Players, page, player
from evaluation.report.memorisation import memorisation, memorisation_table
from evaluation.report.table import as_json, columns, gap_table, markdown
from evaluation.run.rows import (
    FLOOR,
    KINDS,
    REAL,
    Entry,
    EvaluationContext,
    make_reference,
    make_sounds,
    score,
    text_gaps,
    write_queries,
)
from evaluation.run.scores import Reference, TableRow


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `clipsynth evaluate`; its help explains them."""

    clips: Path
    queries: Path
    out: Path
    systems: Sequence[str]
    labels: Path | None = None
    prepared: Path | None = None
    kinds: Sequence[QueryKind] = KINDS
    embedders: Sequence[str] = ("classifier", "melstats", "random-conv")
    inception: Path | None = None
    seeds: int = 3
    per_class: int = 50
    duration_s: float = 4.0
    batch_size: int = 8
    rtf_clips: int = 5
    resamples: int = 200
    baseline: str | None = None

    @property
    def label_file(self) -> Path:
        return self.labels or self.clips / "manifest.csv"


def default_systems(
    bundle: Path, prepared: Path | None, steps: int | None, guidance_scale: float | None
) -> list[str]:
    """Return the rows of one bundle: itself, its vocoder, and with a prepared folder its retriever."""
    given = {"steps": steps, "guidance": guidance_scale}
    options = urlencode({name: value for name, value in given.items() if value is not None})
    rows = [f"CLIPSynth=bundle:{bundle}?{options}", f"vocoder reconstruction=reconstruction:{bundle}"]
    return rows + ([f"CLIPRetriever=retriever:{bundle}"] if prepared else [])


def parse_kinds(names: Sequence[str] | None) -> list[QueryKind]:
    """Return the kinds of query by name, all by default; reconstruction is always among them.

    Raises:
        ValueError: a name is neither text nor image.
    """
    unknown = sorted(set(names or ()) - {"text", "image"})
    if unknown:
        raise ValueError(f"queries are text or image, got {unknown[0]!r}")
    return [kind for kind in KINDS if not names or kind in names or kind == "clip"]


def evaluate(options: EvaluateOptions) -> str:
    """Write `results.json`, `results.md` and `report.html` to `options.out` and return the Markdown.

    Queries are images of the "validation" split and phrases of its classes. Neither a generator nor the judge
    may have seen that split.

    Raises:
        ValueError: labels, videos, queries, systems or embedders cannot be used; the message names them.
    """
    # 1. Judge, queries and systems.
    claim(options.out, options.clips, options.label_file)
    judge = get_classifier(options.out, options.clips, options.label_file)
    plan = make_plan(options, judge)
    systems = load_systems(options)
    embedders = [load_embedder(spec, lambda: judge) for spec in options.embedders]
    images = [efficientnet_lite0(), *([inception_v3(options.inception)] if options.inception else [])]
    write_queries(options.out / "queries.csv", plan, options.kinds)

    # 2. Sounds.
    context = EvaluationContext(options.out, plan, options.clips)
    train = read_labels(options.label_file, "train")
    kinds = [kind for kind in KINDS if kind in options.kinds]
    answers = [context.entry(s, kind) for s in systems for kind in kinds if kind in s.kinds]
    real, floor, training = context.real(), context.floor(train), context.training_clips(train)
    entries = [*answers, real, floor]
    make_sounds([real, floor, training, *answers], options.batch_size)

    # 3. Figures.
    reference = make_reference(
        context,
        judge,
        embedders,
        images,
        batch_size=options.batch_size,
        resamples=options.resamples,
        train=train,
        sources=read_sources(options.label_file),
    )
    rows = [score(entry, reference, plan, rtf_clips=options.rtf_clips) for entry in track(entries, "figures")]

    # 4. Table, numbers, page.
    relevance = next((e.name for e in embedders if isinstance(e, TextEmbedder)), "classifier")
    shown = columns(
        rows, [e.name for e in embedders], images[-1].name, relevance, list(reference.linear_judges)
    )
    baseline = options.baseline or systems[0].name
    gaps = text_gaps(rows, [c.figure for c in shown if c.figure != "RTF"], baseline)
    notes = describe(options, plan, judge, reference)
    settings = {
        "systems": {s.name: s.version for s in systems},
        "embedders": {e.name: e.version for e in [*embedders, *images]},
        "baseline": baseline,
        "clips": len(plan.clips),
        "seeds": plan.seeds,
        "per_class": plan.per_class,
        "duration_s": plan.duration_s,
        "resamples": options.resamples,
        "chance": 1 / len(judge.labels),
        "copy_threshold": reference.copy_threshold,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    nearness = memorisation(rows, REAL, reference.training_apart)
    results = as_json(settings, rows, gaps) | {"memorisation": nearness}
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    copied = memorisation_table(nearness)
    table = "\n\n".join([markdown(rows, shown, notes), copied, *([gap_table(gaps)] if gaps else [])])
    (options.out / "results.md").write_text(table + "\n")
    examples = [players(entry, row) for entry, row in zip(entries, rows, strict=True)]
    (options.out / "report.html").write_text(page(rows, shown, notes, examples, gap_table(gaps), copied))
    return table


def make_plan(options: EvaluateOptions, judge: SoundClassifier) -> Plan:
    """Return the plan for the validation clips.

    Raises:
        ValueError: the judge was not trained on a class.
    """
    phrases = read_phrases(options.queries)
    clips = list(read_clips(options.clips, read_labels(options.label_file, "validation")))
    unknown = sorted((set(phrases) | {c.label for c in clips}) - set(judge.labels))
    if unknown:
        raise ValueError(f"{options.queries}: the judge does not know the class {unknown[0]!r}")
    return Plan(clips, phrases, options.seeds, options.per_class, options.duration_s)


def load_systems(options: EvaluateOptions) -> list[Synthesizer]:
    """Return the systems, in their order.

    Raises:
        ValueError: no system, two of one name, an unknown baseline, or a system that cannot be loaded.
    """
    if not options.systems or not options.embedders:
        raise ValueError("at least one system and one embedder are needed")
    sources = Sources(options.clips, options.prepared)
    systems = [load_system(spec, sources) for spec in options.systems]
    names = [system.name for system in systems]
    if len(set(names)) < len(names) or {REAL, FLOOR} & set(names):
        raise ValueError(f"systems need different names, got {', '.join(names)}")
    if options.baseline not in (None, *names):
        raise ValueError(f"--baseline {options.baseline}: the systems are {', '.join(names)}")
    return systems


def describe(options: EvaluateOptions, plan: Plan, judge: SoundClassifier, reference: Reference) -> list[str]:
    clips = len(plan.clips)
    judged = f"{plan.per_class} sounds of each class" if plan.per_class else "the same sounds"
    return [
        f"Distances: {clips} validation clips, {plan.seeds} sounds for each (every sound has its own seed), "
        f"against the clips' own sounds; the mean over the {plan.seeds} sets, so N = {clips} on both sides. "
        f"Class accuracy and relevance: {judged}; chance is {100 / len(judge.labels):.1f} %. In brackets: "
        f"95 % of {options.resamples} bootstrap resamples of clips within classes; for RTF the range of "
        f"{options.rtf_clips} queries, one at a time. N: different sounds.",
        "The name after the slash is the embedder's. KAD is multiplied by 100; FAD∞ is extrapolated to "
        "infinitely many clips. copies: sounds nearer to a training clip than "
        f"{reference.copy_threshold:.3f} in shift-searched log-mel; 5 % of training clips are that near to a "
        "clip of another source. The floor is training clips of the same classes; the judge was trained on "
        "them, so it does not judge them.",
    ]


def players(entry: Entry, row: TableRow) -> Players:
    first = {s.query.label: s for s in reversed(entry.sets[0])}
    return Players(
        by_class=[_player(entry, first[label]) for label in sorted(first)],
        worst=[_player(entry, s) for s in row.worst],
        closest=[_player(entry, s) for s in row.closest],
    )


def _player(entry: Entry, sample: Sample) -> Player:
    query = sample.query.prompt or sample.query.clip
    [waveform] = entry.store.read([sample])
    return player(waveform, f"{sample.query.label}: {query}, seed {sample.seed}")
