"""`clipsynth study`: questions about one or several bundles, answered with labelled clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipsynth.commands.options import (
    BatchSize,
    Bundle,
    Clips,
    Duration,
    Labels,
    PerClass,
    Queries,
    Resamples,
    Seeds,
    settings_with,
)

if TYPE_CHECKING:
    from evaluation.studies.context import StudyContext
    from evaluation.studies.ladder import TextVariant
    from models.networks.condition_encoder import ConditionEncoder
    from models.pipeline import ClipSynthPipeline

study = typer.Typer(
    no_args_is_help=True,
    help="Measure a bundle's ceiling, the effect of remedies, and the number of steps it needs.",
)

# Options that several studies share; `_context` makes a `StudyContext` of them.
Prepared = Annotated[
    Path | None,
    typer.Option(help="Output of `prepare` for the training clips: lists the dev clips, holds the images."),
]
Out = Annotated[Path, typer.Option(help="Folder for results and sounds; the same command resumes a run.")]
Judge = Annotated[
    Path | None, typer.Option(help="Output of `clipsynth evaluate` with its judge; by default --out has one.")
]
Split = Annotated[str, typer.Option(help="dev, to make choices; validation, to report once.")]
Timed = Annotated[int, typer.Option(min=0, help="Queries timed one at a time; 0 leaves seconds out.")]
Steps = Annotated[int | None, typer.Option(min=1, max=200, help="Steps; the bundle's by default.")]
Bank = Annotated[
    list[str] | None,
    typer.Option(help="SHARE,TAU of the projection on training images; three of them by default."),
]
Prior = Annotated[
    bool, typer.Option("--prior", help="Fit a prior to images and a list of phrases; needs --prepared.")
]
Variant = Annotated[
    list[str] | None,
    typer.Option(help="NAME=setting=value&…: settings of the condition encoder, and `prior`."),
]
OUT = Path("runs/studies")


def _context(clips: Path, queries: Path, out: Path, split: str = "dev", **options: Any) -> StudyContext:
    from clipsynth.services.processes import let_threads_sleep

    let_threads_sleep()
    from evaluation.studies.context import StudyContext, StudyOptions

    if split not in ("dev", "validation"):
        raise ValueError(f"--split is dev or validation, got {split!r}")
    return StudyContext(StudyOptions(clips, queries, out, split=split, **options))  # type: ignore[arg-type]


def _model(model: Path | None) -> Path:
    return Path(settings_with(model=model).model)


def _variants(
    sigma: list[float] | None, bank: list[str] | None, prior: bool, variant: list[str] | None
) -> list[TextVariant]:
    from evaluation.studies.ladder import parse_variant, text_variants

    sigmas = [0.25, 0.5, 1.0] if sigma is None else sigma
    banks = [_two_floats(b) for b in bank] if bank else [(0.5, 0.05), (0.9, 0.05), (1.0, 0.01)]
    return [*text_variants(sigmas, banks, prior=prior), *(parse_variant(spec) for spec in variant or [])]


def _fit_prior(prepared: Path | None) -> Callable[[ClipSynthPipeline], ConditionEncoder] | None:
    """Return a function that fits a prior to the images of a prepared folder; None without a folder."""
    if prepared is None:
        return None

    def fit(pipe: ClipSynthPipeline) -> ConditionEncoder:
        import torch

        from training.data.clips import load_clips
        from training.prior import fit_prior, load_bank

        clips = load_clips(prepared)
        embeds = torch.cat([clips.train.embeds(i) for i in range(len(clips.train))])
        return fit_prior(pipe.condition_encoder, load_bank(prepared, clips), embeds)

    return fit


@study.command()
def ceiling(
    clips: Clips,
    queries: Queries,
    labels: Labels = None,
    prepared: Prepared = None,
    out: Out = OUT,
    resamples: Resamples = 200,
    k: Annotated[int, typer.Option(min=1, help="Neighbours.")] = 5,
    bank: Bank = None,
    prior: Prior = False,
    variant: Variant = None,
    model: Bundle = None,
) -> None:
    """How often are the training images nearest to a query of its class? Makes no sound."""
    from evaluation.studies.ceiling import ceiling as run

    context = _context(clips, queries, out, labels=labels, prepared=prepared, resamples=resamples)
    variants = _variants([], bank, prior, variant)
    print(run(context, _model(model), k, variants=variants, fit_prior=_fit_prior(prepared)))


@study.command()
def ladder(
    clips: Clips,
    queries: Queries,
    labels: Labels = None,
    prepared: Prepared = None,
    out: Out = OUT,
    judge: Judge = None,
    split: Split = "dev",
    seeds: Seeds = 3,
    per_class: PerClass = 0,
    duration: Duration = 4.0,
    batch_size: BatchSize = 8,
    resamples: Resamples = 200,
    timed: Timed = 5,
    steps: Steps = None,
    sigma: Annotated[
        list[float] | None, typer.Option(help="Noise levels given to the network; 0.25, 0.5, 1 by default.")
    ] = None,
    bank: Bank = None,
    prior: Prior = False,
    variant: Variant = None,
    bundle: Annotated[
        list[str] | None, typer.Option(help="NAME=BUNDLE, another bundle with its own settings.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Names of the variants to keep, besides raw text.")
    ] = None,
    model: Bundle = None,
) -> None:
    """What is each remedy against the text gap worth, switched on alone at request time?"""
    from evaluation.studies.ladder import RAW, parse_bundle
    from evaluation.studies.ladder import ladder as run

    context = _context(
        clips, queries, out, split, labels=labels, prepared=prepared, judge=judge, seeds=seeds,
        per_class=per_class, duration_s=duration, batch_size=batch_size, resamples=resamples, timed=timed,
    )  # fmt: skip
    variants = [*_variants(sigma, bank, prior, variant), *(parse_bundle(spec) for spec in bundle or [])]
    if only:
        variants = [v for v in variants if v.name in {RAW, *only}]
    print(run(context, _model(model), variants, fit_prior=_fit_prior(prepared), steps=steps))


@study.command()
def sets(
    clips: Clips,
    queries: Queries,
    labels: Labels = None,
    prepared: Prepared = None,
    out: Out = OUT,
    judge: Judge = None,
    split: Split = "dev",
    seeds: Seeds = 3,
    duration: Duration = 4.0,
    batch_size: BatchSize = 8,
    resamples: Resamples = 200,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of classes.")] = 40,
    steps: Steps = None,
    model: Bundle = None,
) -> None:
    """Does the judge find both of two sounds, for each composition and for the text "A and B"?"""
    from evaluation.studies.sets import sets as run

    context = _context(
        clips, queries, out, split, labels=labels, prepared=prepared, judge=judge, seeds=seeds,
        duration_s=duration, batch_size=batch_size, resamples=resamples,
    )  # fmt: skip
    print(run(context, _model(model), count=pairs, steps=steps))


@study.command()
def attributes(
    clips: Clips,
    queries: Queries,
    labels: Labels = None,
    prepared: Prepared = None,
    out: Out = OUT,
    judge: Judge = None,
    split: Split = "dev",
    seeds: Seeds = 3,
    duration: Duration = 4.0,
    batch_size: BatchSize = 8,
    resamples: Resamples = 200,
    attribute: Annotated[
        list[str] | None, typer.Option(help="Attributes; all that the bundle supports by default.")
    ] = None,
    level: Annotated[
        list[float] | None, typer.Option(min=0, max=1, help="Levels; 0.1, 0.3, 0.5, 0.7, 0.9 by default.")
    ] = None,
    clips_per_class: Annotated[int, typer.Option(min=1, help="Clips of each class that are queries.")] = 1,
    margin: Annotated[
        float | None, typer.Option(min=0, max=1, help="Attribute margin; the bundle's by default.")
    ] = None,
    steps: Steps = None,
    model: Bundle = None,
) -> None:
    """Are sounds as loud, bright, high, noisy and dense as requested?"""
    from evaluation.studies.attributes import LEVELS
    from evaluation.studies.attributes import attributes as run

    context = _context(
        clips, queries, out, split, labels=labels, prepared=prepared, judge=judge, seeds=seeds,
        duration_s=duration, batch_size=batch_size, resamples=resamples,
    )  # fmt: skip
    table = run(
        context,
        _model(model),
        names=attribute or (),
        levels=level or LEVELS,
        clips_per_class=clips_per_class,
        margin=margin,
        steps=steps,
    )
    print(table)


@study.command()
def steps(
    clips: Clips,
    queries: Queries,
    labels: Labels = None,
    prepared: Prepared = None,
    out: Out = OUT,
    judge: Judge = None,
    split: Split = "dev",
    seeds: Seeds = 3,
    per_class: PerClass = 0,
    duration: Duration = 4.0,
    batch_size: BatchSize = 8,
    resamples: Resamples = 200,
    timed: Timed = 5,
    count: Annotated[
        list[int] | None, typer.Option(min=1, max=200, help="Numbers of steps; 4 to 100 by default.")
    ] = None,
    guidance_scale: Annotated[
        list[float] | None, typer.Option(min=0, help="Guidance scales; the bundle's by default.")
    ] = None,
    interval: Annotated[
        list[str] | None, typer.Option(help="LOW,HIGH times with guidance; the bundle's by default.")
    ] = None,
    rescale: Annotated[
        list[float] | None, typer.Option(min=0, max=1, help="Shares of rescaling after guidance (Lin 2023).")
    ] = None,
    shift: Annotated[
        list[float] | None, typer.Option(min=0.01, help="Time shifts; the bundle's time_shift by default.")
    ] = None,
    model: Bundle = None,
) -> None:
    """How good are sounds after few steps, and how many steps are enough?"""
    from evaluation.studies.steps import STEPS
    from evaluation.studies.steps import steps as run

    context = _context(
        clips, queries, out, split, labels=labels, prepared=prepared, judge=judge, seeds=seeds,
        per_class=per_class, duration_s=duration, batch_size=batch_size, resamples=resamples, timed=timed,
    )  # fmt: skip
    values = {
        "guidances": guidance_scale or (),
        "intervals": [_two_floats(i) for i in interval or ()],
        "rescales": rescale or (),
        "shifts": shift or (),
    }
    print(run(context, _model(model), count or STEPS, **values))  # type: ignore[arg-type]


@study.command()
def ablation(
    remedies: Annotated[
        list[str],
        typer.Argument(
            metavar="REMEDY…", help="NAME=WITH,WITHOUT, two bundles; or a YAML list of name, with, without."
        ),
    ],
    clips: Clips,
    queries: Queries,
    labels: Labels = None,
    prepared: Prepared = None,
    out: Out = OUT,
    judge: Judge = None,
    split: Split = "dev",
    seeds: Seeds = 3,
    per_class: PerClass = 0,
    duration: Duration = 4.0,
    batch_size: BatchSize = 8,
    resamples: Resamples = 200,
    timed: Timed = 5,
) -> None:
    """What is each remedy of training worth? Compares bundles with and without it, line by line."""
    from evaluation.studies.ablation import ablation as run
    from evaluation.studies.ablation import parse_remedies

    context = _context(
        clips, queries, out, split, labels=labels, prepared=prepared, judge=judge, seeds=seeds,
        per_class=per_class, duration_s=duration, batch_size=batch_size, resamples=resamples, timed=timed,
    )  # fmt: skip
    print(run(context, parse_remedies(remedies)))


def _two_floats(text: str) -> tuple[float, float]:
    """Return the numbers of "A,B".

    Raises:
        ValueError: not of that form.
    """
    try:
        first, second = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not of the form NUMBER,NUMBER") from None
    return first, second
