"""`clipsynth study`: questions about one or several bundles, answered with labelled clips."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from clipsynth.commands import options as shared

if TYPE_CHECKING:
    from evaluation.studies.ladder import TextVariant
    from models.networks.condition_encoder import ConditionEncoder
    from models.pipeline import ClipSynthPipeline

Name = Literal["ceiling", "ladder", "sets", "attributes", "steps", "ablation"]
# The options that not every study has, by study.
OWN = {
    "ceiling": {"k", "bank", "prior", "variant"},
    "ladder": {"sigma", "bank", "prior", "variant", "bundle", "steps"},
    "sets": {"pairs", "steps"},
    "attributes": {"attribute", "level", "clips_per_class", "steps"},
    "steps": {"count", "guidance_scale", "interval", "shift"},
    "ablation": {"remedies"},
}
_texts = partial(Option, rich_help_panel="Of ladder and ceiling")
_levels = partial(Option, rich_help_panel="Of attributes")
_grid = partial(Option, rich_help_panel="Of steps")


def study(
    ctx: typer.Context,
    name: Annotated[Name, Argument(metavar="STUDY", help="The question, see above.")],
    clips: shared.Clips,
    queries: shared.Queries,
    remedies: Annotated[
        list[str] | None,
        Argument(help="Of ablation: NAME=WITH,WITHOUT, or a YAML list of name, with, without."),
    ] = None,
    labels: shared.Labels = None,
    prepared: Annotated[
        Path | None,
        Option(help="Output of `prepare` for the training clips: names dev clips, holds the images."),
    ] = None,
    out: Annotated[
        Path, Option(help="Folder for results and sounds; the same command resumes a run.")
    ] = Path("runs/studies"),
    judge: Annotated[
        Path | None, Option(help="Output of `clipsynth evaluate` with its judge; by default --out has one.")
    ] = None,
    split: Annotated[
        Literal["dev", "validation"], Option(help="dev, to make choices; validation, to report once.")
    ] = "dev",
    seeds: shared.Seeds = 3,
    per_class: shared.PerClass = 0,
    duration: shared.Duration = 4.0,
    batch_size: shared.BatchSize = 8,
    resamples: shared.Resamples = 200,
    timed: Annotated[int, Option(min=0, help="Queries timed one at a time; 0 leaves seconds out.")] = 5,
    model: shared.Bundle = None,
    steps: Annotated[
        int | None, Option(min=1, max=200, help="Of ladder, sets and attributes: steps of the sampler.")
    ] = None,
    pairs: Annotated[int, Option(min=1, help="Of sets: pairs of classes.")] = 40,
    k: Annotated[int, _texts(min=1, help="Neighbours (ceiling).")] = 5,
    bank: Annotated[
        list[str] | None, _texts(help="SHARE,TAU of the projection on training images; three by default.")
    ] = None,
    prior: Annotated[
        bool, _texts("--prior", help="Fit a prior to images and a list of phrases; needs --prepared.")
    ] = False,
    variant: Annotated[
        list[str] | None, _texts(help="NAME=setting=value&…: condition encoder settings, and `prior`.")
    ] = None,
    sigma: Annotated[
        list[float] | None, _texts(help="Noise levels for the network; 0.25, 0.5, 1 by default (ladder).")
    ] = None,
    bundle: Annotated[
        list[str] | None, _texts(help="NAME=BUNDLE, another bundle with its own settings (ladder).")
    ] = None,
    attribute: Annotated[list[str] | None, _levels(help="Attributes; by default all.")] = None,
    level: Annotated[list[float] | None, _levels(min=0, max=1, help="0.1, 0.3, … 0.9 by default.")] = None,
    clips_per_class: Annotated[int, _levels(min=1, help="Clips of each class that are queries.")] = 1,
    count: Annotated[list[int] | None, _grid(min=1, max=200, help="Steps; 4 to 100 by default.")] = None,
    guidance_scale: Annotated[list[float] | None, _grid(min=0, help="Guidance scales.")] = None,
    interval: Annotated[list[str] | None, _grid(help="LOW,HIGH times with guidance.")] = None,
    shift: Annotated[list[float] | None, _grid(min=0.01, help="Time shifts.")] = None,
) -> None:
    """Answer one question about a bundle, with labelled clips.

    ceiling: how often are the training images nearest to a query of its class? Makes no sound.

    ladder: what is each remedy against the text gap worth, switched on alone at request time?

    sets: does the judge find both of two sounds, for each composition and for the text "A and B"?

    attributes: are sounds as loud, bright, high, noisy and dense as requested?

    steps: how good are sounds after few steps, and how many steps are enough?

    ablation: what is each remedy of training worth? Compares bundles with and without it.

    Values that are not given are the bundle's own.
    """
    foreign = set().union(*OWN.values()) - OWN[name]
    if foreign := {p for p in foreign if getattr(ctx.get_parameter_source(p), "name", "") == "COMMANDLINE"}:
        raise ValueError(f"the study {name} does not have {', '.join(sorted(foreign))}")
    from clipsynth.services.processes import let_threads_sleep

    let_threads_sleep()
    from evaluation.studies import ablation, attributes, ceiling, ladder, sets
    from evaluation.studies import steps as sampling
    from evaluation.studies.context import StudyContext, StudyOptions

    context = StudyContext(
        StudyOptions(
            clips, queries, out, prepared=prepared, labels=labels, judge=judge, split=split, seeds=seeds,
            per_class=per_class, duration_s=duration, batch_size=batch_size, resamples=resamples, timed=timed,
        )
    )  # fmt: skip
    place = Path(shared.settings_with(model=model).model)
    prior_of = _fit_prior(prepared)
    if name == "ceiling":
        variants = _variants([], bank, prior, variant)
        table = ceiling.ceiling(context, place, k, variants=variants, fit_prior=prior_of)
    elif name == "ladder":
        variants = _variants(sigma, bank, prior, variant)
        variants += [ladder.parse_bundle(spec) for spec in bundle or []]
        table = ladder.ladder(context, place, variants, fit_prior=prior_of, steps=steps)
    elif name == "sets":
        table = sets.sets(context, place, count=pairs, steps=steps)
    elif name == "attributes":
        table = attributes.attributes(
            context, place, names=attribute or (), levels=level or attributes.LEVELS,
            clips_per_class=clips_per_class, steps=steps,
        )  # fmt: skip
    elif name == "steps":
        table = sampling.steps(
            context, place, count or sampling.STEPS, guidances=guidance_scale or (),
            intervals=[_two_floats(i) for i in interval or ()], shifts=shift or (),
        )  # fmt: skip
    else:
        table = ablation.ablation(context, ablation.parse_remedies(remedies or []))
    print(table)


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
        return fit_prior(pipe.condition_encoder, load_bank(clips), embeds)

    return fit


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
