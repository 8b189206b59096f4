"""`clipsynth study`: questions to a bundle, by the evaluation's functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from clipsynth.commands.options import Bundle, settings_with

if TYPE_CHECKING:
    from evaluation.studies.ladder import Rung
    from evaluation.studies.setting import Setting
    from models.networks.condition_encoder import ConditionEncoder
    from models.pipeline import ClipSynthPipeline

study = typer.Typer(
    no_args_is_help=True,
    help="Where a bundle's ceiling is, what remedies are worth, how many steps it needs.",
)

REQUIRED = inspect.Parameter.empty
# What the studies have in common, by the names of `evaluation.studies.setting.Options`; `studied` adds them
# to a command.
COMMON: dict[str, tuple[Any, Any]] = {
    "clips": (Annotated[Path, typer.Option(help="Folder of labelled videos.")], REQUIRED),
    "queries": (Annotated[Path, typer.Option(help='JSON {"classes": {label: [phrase, …]}}.')], REQUIRED),
    "labels": (
        Annotated[Path | None, typer.Option(help="CSV file,label,split; CLIPS/manifest.csv by default.")],
        None,
    ),
    "prepared": (
        Annotated[
            Path | None,
            typer.Option(
                help="What `prepare` made of the training clips: says which are dev, and holds their images."
            ),
        ],
        None,
    ),
    "out": (
        Annotated[
            Path, typer.Option(help="Folder for results and sounds; a later run goes on where it was ended.")
        ],
        Path("runs/studies"),
    ),
    "judge": (
        Annotated[
            Path | None,
            typer.Option(
                help="Folder of `clipsynth evaluate` with its judge; one is trained in --out by default."
            ),
        ],
        None,
    ),
    "split": (Annotated[str, typer.Option(help="dev, to choose by; validation, to report once.")], "dev"),
    "seeds": (Annotated[int, typer.Option(min=1, help="Sounds of each query.")], 3),
    "per_class": (
        Annotated[
            int, typer.Option(min=0, help="Sounds of each class, for agreement; 0: those for distances.")
        ],
        0,
    ),
    "duration_s": (
        Annotated[float, typer.Option("--duration", min=0.5, help="Seconds of each sound.")],
        4.0,
    ),
    "batch_size": (Annotated[int, typer.Option(min=1, help="Queries given to a system at once.")], 8),
    "resamples": (Annotated[int, typer.Option(min=10, help="Of the bootstrap.")], 200),
    "timed": (
        Annotated[int, typer.Option(min=0, help="Queries timed alone; 0 leaves seconds out.")],
        5,
    ),
}
SILENT = ("clips", "queries", "labels", "prepared", "out", "resamples")  # no sound is made
SOUNDS = (*SILENT, "judge", "split", "seeds", "duration_s", "batch_size")
FIGURES = (*SOUNDS, "per_class", "timed")

Steps = Annotated[int | None, typer.Option(min=1, max=200, help="In place of the bundle's own.")]
Sigma = Annotated[
    list[float] | None, typer.Option(help="Levels told to the network; 0.25, 0.5, 1 by default.")
]
Bank = Annotated[
    list[str] | None,
    typer.Option(help="SHARE,TAU of the projection on training images; three of them by default."),
]
PriorToo = Annotated[
    bool,
    typer.Option("--prior", help="Fit a prior on images and a generic list of phrases; needs --prepared."),
]
RungToo = Annotated[
    list[str] | None,
    typer.Option(help="A rung more, NAME=setting=value&…: settings of the condition encoder, and `prior`."),
]


def studied(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function of a setting and options a command `clipsynth study NAME`, whose setting is made of the common options of these `names`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function)
        hints = get_type_hints(function, localns={"Setting": object}, include_extras=True)
        parameters = {name: COMMON[name] for name in names} | {
            name: (hints[name], REQUIRED if p.default is p.empty else p.default)
            for name, p in own.parameters.items()
            if name != "setting"
        }

        def command(**given: Any) -> None:
            function(_setting(**{name: given.pop(name) for name in names}), **given)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__annotations__ = {name: hint for name, (hint, _) in parameters.items()}
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
                for name, (hint, default) in parameters.items()
            ]
        )
        study.command()(command)
        return function

    return decorate


def _setting(**options: Any) -> Setting:
    from clipsynth.services.processes import let_threads_sleep

    let_threads_sleep()
    from evaluation.studies.setting import Setting, StudyOptions

    if options.get("split", "dev") not in ("dev", "validation"):
        raise ValueError(f"--split is dev or validation, got {options['split']!r}")
    return Setting(StudyOptions(**options))


def _rungs(
    sigma: list[float] | None, bank: list[str] | None, prior: bool, rung: list[str] | None
) -> list[Rung]:
    from evaluation.studies.ladder import parse_rung, rungs

    sigmas = [0.25, 0.5, 1.0] if sigma is None else sigma
    banks = [_two_floats(b) for b in bank] if bank else [(0.5, 0.05), (0.9, 0.05), (1.0, 0.01)]
    return [*rungs(sigmas, banks, prior=prior), *(parse_rung(spec) for spec in rung or [])]


def _fit_prior(prepared: Path | None) -> Callable[[ClipSynthPipeline], ConditionEncoder] | None:
    """Return what fits a prior to the images of a prepared folder, or None without one."""
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


@studied(*SILENT)
def ceiling(
    setting: Setting,
    k: Annotated[int, typer.Option(min=1, help="Neighbours.")] = 5,
    bank: Bank = None,
    prior: PriorToo = False,
    rung: RungToo = None,
    model: Bundle = None,
) -> None:
    """How often the training images nearest to a query are of its class: no sound is made."""
    from evaluation.studies.ceiling import ceiling as run

    rungs = _rungs([], bank, prior, rung)
    print(
        run(
            setting,
            settings_with(model=model).model,
            k,
            rungs=rungs,
            prior=_fit_prior(setting.options.prepared),
        )
    )


@studied(*FIGURES)
def ladder(
    setting: Setting,
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
    from evaluation.studies import ladder as study_of

    wanted = [*_rungs(sigma, bank, prior, rung), *(study_of.also(spec) for spec in also or [])]
    if only:
        wanted = [r for r in wanted if r.name in {study_of.RAW, *only}]
    print(
        study_of.ladder(
            setting,
            settings_with(model=model).model,
            wanted,
            prior=_fit_prior(setting.options.prepared),
            steps=steps,
        )
    )


@studied(*SOUNDS)
def sets(
    setting: Setting,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of classes.")] = 40,
    steps: Steps = None,
    model: Bundle = None,
) -> None:
    """Whether both of two things asked for are heard, by composition and for the text "A and B"."""
    from evaluation.studies.sets import sets as run

    print(run(setting, settings_with(model=model).model, count=pairs, steps=steps))


@studied(*SOUNDS)
def attributes(
    setting: Setting,
    attribute: Annotated[list[str] | None, typer.Option(help="All that the bundle takes by default.")] = None,
    level: Annotated[
        list[float] | None, typer.Option(min=0, max=1, help="0.1, 0.3, 0.5, 0.7, 0.9 by default.")
    ] = None,
    each: Annotated[int, typer.Option(min=1, help="Clips of each class whose queries are asked.")] = 1,
    reach: Annotated[
        float | None, typer.Option(min=0, max=1, help="In place of the bundle's attribute_reach.")
    ] = None,
    steps: Steps = None,
    model: Bundle = None,
) -> None:
    """Whether sounds are as loud, bright, high, noisy and dense as was asked."""
    from evaluation.studies.attributes import LEVELS
    from evaluation.studies.attributes import attributes as run

    bundle = settings_with(model=model).model
    print(
        run(
            setting,
            bundle,
            names=attribute or (),
            levels=level or LEVELS,
            each=each,
            reach=reach,
            steps=steps,
        )
    )


@studied(*FIGURES)
def steps(
    setting: Setting,
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


@studied(*FIGURES)
def ablation(
    setting: Setting,
    remedies: Annotated[
        list[str],
        typer.Argument(
            metavar="REMEDY…", help="NAME=WITH,WITHOUT, bundles; or a YAML list of name, with, without."
        ),
    ],
) -> None:
    """What remedies of training are worth: bundles with and without each, line by line."""
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
