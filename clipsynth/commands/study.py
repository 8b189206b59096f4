"""`clipsynth study`: questions to a bundle, by the evaluation's functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipsynth.commands.options import Bundle, settings_with

if TYPE_CHECKING:
    from evaluation.studies.ladder import Rung
    from evaluation.studies.setting import Setting
    from models.condition_encoder import ConditionEncoder
    from models.pipeline import ClipSynthPipeline

study = typer.Typer(
    no_args_is_help=True,
    help="Where a bundle's ceiling is, what remedies are worth, how many steps it needs.",
)

Clips = Annotated[Path, typer.Option(help="Folder of labelled videos.")]
Queries = Annotated[Path, typer.Option(help='JSON {"classes": {label: [phrase, …]}}.')]
Labels = Annotated[Path | None, typer.Option(help="CSV file,label,split; CLIPS/manifest.csv by default.")]
Prepared = Annotated[
    Path | None,
    typer.Option(
        help="What `prepare` made of the training clips: says which are dev, and holds their pictures."
    ),
]
Out = Annotated[
    Path, typer.Option(help="Folder for results and sounds; a later run goes on where it was ended.")
]
Judge = Annotated[
    Path | None,
    typer.Option(help="Folder of `clipsynth evaluate` with its judge; one is trained in --out by default."),
]
Split = Annotated[str, typer.Option(help="dev, to choose by; validation, to report once.")]
Seeds = Annotated[int, typer.Option(min=1, help="Sounds of each query.")]
PerClass = Annotated[
    int, typer.Option(min=0, help="Sounds of each class, for agreement; 0: those for distances.")
]
Duration = Annotated[float, typer.Option(min=0.5, help="Seconds of each sound.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Queries given to a system at once.")]
Resamples = Annotated[int, typer.Option(min=10, help="Of the bootstrap.")]
Timed = Annotated[int, typer.Option(min=0, help="Queries timed alone; 0 leaves seconds out.")]
Steps = Annotated[int | None, typer.Option(min=1, max=200, help="In place of the bundle's own.")]
Sigma = Annotated[
    list[float] | None, typer.Option(help="Levels told to the network; 0.25, 0.5, 1 by default.")
]
Bank = Annotated[
    list[str] | None,
    typer.Option(help="SHARE,TAU of the projection on training pictures; three of them by default."),
]
PriorToo = Annotated[
    bool,
    typer.Option("--prior", help="Fit a prior on pictures and a generic list of phrases; needs --prepared."),
]
RungToo = Annotated[
    list[str] | None,
    typer.Option(help="A rung more, NAME=setting=value&…: settings of the condition encoder, and `prior`."),
]
OUT, SEEDS, DURATION, BATCH, RESAMPLES, TIMED = Path("runs/studies"), 3, 4.0, 8, 200, 5


def _setting(**options: object) -> Setting:
    from clipsynth.process import let_threads_sleep

    let_threads_sleep()
    from evaluation.studies.setting import Options, Setting

    if options.get("split", "dev") not in ("dev", "validation"):
        raise ValueError(f"--split is dev or validation, got {options['split']!r}")
    return Setting(Options(**options))  # type: ignore[arg-type]


def _rungs(
    sigma: list[float] | None, bank: list[str] | None, prior: bool, rung: list[str] | None
) -> list[Rung]:
    from evaluation.studies.ladder import parse_rung, rungs

    sigmas = [0.25, 0.5, 1.0] if sigma is None else sigma
    banks = [_two_floats(b) for b in bank] if bank else [(0.5, 0.05), (0.9, 0.05), (1.0, 0.01)]
    return [*rungs(sigmas, banks, prior=prior), *(parse_rung(spec) for spec in rung or [])]


def _fit_prior(prepared: Path | None) -> Callable[[ClipSynthPipeline], ConditionEncoder] | None:
    """Return what fits a prior to the pictures of a prepared folder, or None without one."""
    if prepared is None:
        return None

    def fit(pipe: ClipSynthPipeline) -> ConditionEncoder:
        import torch

        from training.data import load_clips
        from training.prior import fit_prior
        from training.pseudo_text import load_bank

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
    resamples: Resamples = RESAMPLES,
    k: Annotated[int, typer.Option(min=1, help="Neighbours.")] = 5,
    bank: Bank = None,
    prior: PriorToo = False,
    rung: RungToo = None,
    model: Bundle = None,
) -> None:
    """How often the training pictures nearest to a query are of its class: no sound is made."""
    setting = _setting(
        clips=clips, queries=queries, labels=labels, prepared=prepared, out=out, resamples=resamples
    )
    from evaluation.studies.ceiling import ceiling as run

    rungs = _rungs([], bank, prior, rung)
    print(run(setting, settings_with(model=model).model, k, rungs=rungs, prior=_fit_prior(prepared)))


@study.command()
def ladder(
    clips: Clips,
    queries: Queries,
    labels: Labels = None,
    prepared: Prepared = None,
    out: Out = OUT,
    judge: Judge = None,
    split: Split = "dev",
    seeds: Seeds = SEEDS,
    per_class: PerClass = 0,
    duration: Duration = DURATION,
    batch_size: BatchSize = BATCH,
    resamples: Resamples = RESAMPLES,
    timed: Timed = TIMED,
    steps: Steps = None,
    sigma: Sigma = None,
    bank: Bank = None,
    prior: PriorToo = False,
    rung: RungToo = None,
    also: Annotated[
        list[str] | None, typer.Option(help="A further bundle as it is, NAME=BUNDLE: remedies of training.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Of all rungs those of these names, and raw text.")
    ] = None,
    model: Bundle = None,
) -> None:
    """What each remedy against the text gap is worth, switched on alone at request time."""
    setting = _setting(
        clips=clips, queries=queries, labels=labels, prepared=prepared, out=out, judge=judge, split=split, seeds=seeds,
        per_class=per_class, duration_s=duration, batch_size=batch_size, resamples=resamples, timed=timed,
    )  # fmt: skip
    from evaluation.studies import ladder as study_of

    wanted = [*_rungs(sigma, bank, prior, rung), *(study_of.also(spec) for spec in also or [])]
    if only:
        wanted = [r for r in wanted if r.name in {study_of.RAW, *only}]
    print(
        study_of.ladder(
            setting, settings_with(model=model).model, wanted, prior=_fit_prior(prepared), steps=steps
        )
    )


@study.command()
def sets(
    clips: Clips,
    queries: Queries,
    labels: Labels = None,
    prepared: Prepared = None,
    out: Out = OUT,
    judge: Judge = None,
    split: Split = "dev",
    seeds: Seeds = SEEDS,
    duration: Duration = DURATION,
    batch_size: BatchSize = BATCH,
    resamples: Resamples = RESAMPLES,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of classes.")] = 40,
    steps: Steps = None,
    model: Bundle = None,
) -> None:
    """Whether both of two things asked for are heard, by composition and for the text "A and B"."""
    setting = _setting(
        clips=clips, queries=queries, labels=labels, prepared=prepared, out=out, judge=judge, split=split, seeds=seeds,
        duration_s=duration, batch_size=batch_size, resamples=resamples,
    )  # fmt: skip
    from evaluation.studies.sets import sets as run

    print(run(setting, settings_with(model=model).model, count=pairs, steps=steps))


@study.command()
def steps(
    clips: Clips,
    queries: Queries,
    labels: Labels = None,
    prepared: Prepared = None,
    out: Out = OUT,
    judge: Judge = None,
    split: Split = "dev",
    seeds: Seeds = SEEDS,
    per_class: PerClass = 0,
    duration: Duration = DURATION,
    batch_size: BatchSize = BATCH,
    resamples: Resamples = RESAMPLES,
    timed: Timed = TIMED,
    count: Annotated[
        list[int] | None, typer.Option(min=1, max=200, help="Numbers of steps; 4 to 100 by default.")
    ] = None,
    guidance_scale: Annotated[
        list[float] | None, typer.Option(min=0, help="In place of the bundle's.")
    ] = None,
    interval: Annotated[
        list[str] | None, typer.Option(help="LOW,HIGH times with guidance, in place of the bundle's.")
    ] = None,
    rescale: Annotated[
        list[float] | None, typer.Option(min=0, max=1, help="Shares of rescaling after guidance (Lin 2023).")
    ] = None,
    shift: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01, help="How far steps lie towards the noise, in place of the bundle's time_shift."
        ),
    ] = None,
    model: Bundle = None,
) -> None:
    """How good sounds are after few steps, and the fewest that are as good as many."""
    setting = _setting(
        clips=clips, queries=queries, labels=labels, prepared=prepared, out=out, judge=judge, split=split, seeds=seeds,
        per_class=per_class, duration_s=duration, batch_size=batch_size, resamples=resamples, timed=timed,
    )  # fmt: skip
    from evaluation.studies.steps import STEPS
    from evaluation.studies.steps import steps as run

    intervals = [_two_floats(i) for i in interval or []]
    bundle = settings_with(model=model).model
    print(
        run(
            setting,
            bundle,
            count or STEPS,
            guidances=guidance_scale or [],
            intervals=intervals,
            rescales=rescale or [],
            shifts=shift or [],
        )
    )


@study.command()
def ablation(
    remedies: Annotated[
        list[str],
        typer.Argument(
            metavar="REMEDY…", help="NAME=WITH,WITHOUT, bundles; or a YAML list of name, with, without."
        ),
    ],
    clips: Clips,
    queries: Queries,
    labels: Labels = None,
    prepared: Prepared = None,
    out: Out = OUT,
    judge: Judge = None,
    split: Split = "dev",
    seeds: Seeds = SEEDS,
    per_class: PerClass = 0,
    duration: Duration = DURATION,
    batch_size: BatchSize = BATCH,
    resamples: Resamples = RESAMPLES,
    timed: Timed = TIMED,
) -> None:
    """What remedies of training are worth: bundles with and without each, line by line."""
    setting = _setting(
        clips=clips, queries=queries, labels=labels, prepared=prepared, out=out, judge=judge, split=split, seeds=seeds,
        per_class=per_class, duration_s=duration, batch_size=batch_size, resamples=resamples, timed=timed,
    )  # fmt: skip
    from evaluation.studies.ablation import ablation as run
    from evaluation.studies.ablation import parse_remedies

    print(run(setting, parse_remedies(remedies)))


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
