"""`clipsynth study`: questions about one or several bundles, answered with labelled clips."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

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

Name = Literal["ceiling", "attributes", "ablation"]
# The options that not every study has, by study.
OWN = {
    "ceiling": {"k"},
    "attributes": {"attribute", "level", "clips_per_class", "steps"},
    "ablation": {"remedies"},
}
_levels = partial(typer.Option, rich_help_panel="Of attributes")


def study(
    ctx: typer.Context,
    name: Annotated[Name, typer.Argument(metavar="STUDY", help="The question, see above.")],
    clips: Clips,
    queries: Queries,
    remedies: Annotated[
        list[str] | None,
        typer.Argument(help="Of ablation: NAME=WITH,WITHOUT, or a YAML list of name, with, without."),
    ] = None,
    labels: Labels = None,
    prepared: Annotated[
        Path | None,
        typer.Option(help="Output of `prepare` for the training clips: names dev clips, holds the images."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for results and sounds; the same command resumes a run.")
    ] = Path("runs/studies"),
    judge: Annotated[
        Path | None,
        typer.Option(help="Output of `clipsynth evaluate` with its judge; by default --out has one."),
    ] = None,
    split: Annotated[
        Literal["dev", "validation"], typer.Option(help="dev, to make choices; validation, to report once.")
    ] = "dev",
    seeds: Seeds = 3,
    per_class: PerClass = 0,
    duration: Duration = 4.0,
    batch_size: BatchSize = 8,
    resamples: Resamples = 200,
    timed: Annotated[int, typer.Option(min=0, help="Queries timed one at a time; 0 leaves seconds out.")] = 5,
    model: Bundle = None,
    k: Annotated[int, typer.Option(min=1, help="Of ceiling: neighbours.")] = 5,
    attribute: Annotated[list[str] | None, _levels(help="Attributes; by default all.")] = None,
    level: Annotated[list[float] | None, _levels(min=0, max=1, help="0.1, 0.3, … 0.9 by default.")] = None,
    clips_per_class: Annotated[int, _levels(min=1, help="Clips of each class that are queries.")] = 1,
    steps: Annotated[int | None, _levels(min=1, max=200, help="Steps of the sampler.")] = None,
) -> None:
    """Answer one question about a bundle, with labelled clips.

    ceiling: how often are the training images nearest to a query of its class? Makes no sound.

    attributes: are sounds as loud, bright, high, noisy and dense as requested?

    ablation: what is each remedy of training worth? Compares bundles with and without it.

    Values that are not given are the bundle's own.
    """
    foreign = set().union(*OWN.values()) - OWN[name]
    if foreign := {p for p in foreign if getattr(ctx.get_parameter_source(p), "name", "") == "COMMANDLINE"}:
        raise ValueError(f"the study {name} does not have {', '.join(sorted(foreign))}")
    from clipsynth.services.processes import let_threads_sleep

    let_threads_sleep()
    from evaluation.studies import ablation, attributes, ceiling
    from evaluation.studies.context import StudyContext, StudyOptions

    context = StudyContext(
        StudyOptions(
            clips, queries, out, prepared=prepared, labels=labels, judge=judge, split=split, seeds=seeds,
            per_class=per_class, duration_s=duration, batch_size=batch_size, resamples=resamples, timed=timed,
        )
    )  # fmt: skip
    place = Path(settings_with(model=model).model)
    if name == "ceiling":
        table = ceiling.ceiling(context, place, k)
    elif name == "attributes":
        table = attributes.attributes(
            context, place, names=attribute or (), levels=level or attributes.LEVELS,
            clips_per_class=clips_per_class, steps=steps,
        )  # fmt: skip
    else:
        table = ablation.ablation(context, ablation.parse_remedies(remedies or []))
    print(table)
