"""`clipsynth prepare`, `agreement`, `swap`, `train`, `export` and `average`: from videos to a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def prepare(
    videos: Path,
    out: Path,
    clip_model: Annotated[
        str | None, typer.Option(help="A model of open_clip, e.g. ViT-B-32; the packaged encoder by default.")
    ] = None,
    clip_weights: Annotated[
        str, typer.Option(help="Its weights: a local file or a tag of open_clip's hub.")
    ] = "",
    listing: Annotated[
        Path | None, typer.Option("--list", help="The JSON of MUSIC or the CSV of VGGSound: only its videos.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="CSV file,caption: for models that are to be trained on text.")
    ] = None,
    clip_seconds: Annotated[float, typer.Option(min=0.5, help="Length of the clips.")] = 5.0,
    frames_per_s: Annotated[float, typer.Option(min=0.01, help="Frames taken per second.")] = 1.0,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 works in this one.")] = os.cpu_count()
    or 1,
) -> None:
    """Turn a folder of videos into shards of features to train on; goes on where it was."""
    from rich.progress import Progress

    from models.networks.open_clip import OpenClipEncoder
    from models.networks.packaged import PackagedEncoder
    from training.prepare.prepare import PrepareOptions
    from training.prepare.prepare import prepare as run

    encoder = OpenClipEncoder(clip_model, clip_weights) if clip_model else PackagedEncoder()
    with Progress() as progress:
        bar = progress.add_task("prepare", total=None)
        for done, total in run(
            videos,
            out,
            encoder,
            options=PrepareOptions(clip_s=clip_seconds, frames_per_s=frames_per_s),
            listing=listing,
            captions=captions,
            workers=workers,
        ):
            progress.update(bar, completed=done, total=total)
    print((out / "report.json").read_text())


def agreement(
    prepared: Path,
    wav2clip: Annotated[
        Path | None,
        typer.Option(help="Wav2CLIP's weights, a local file: for clips embedded by CLIP ViT-B/32."),
    ] = None,
) -> None:
    """Score how well each clip's sound and image agree, learned from the clips themselves; writes PREPARED/agreement.json."""
    from training.correspondence.score import write_correspondence

    print(write_correspondence(prepared, wav2clip))


def swap(
    prepared: Path,
    out: Path,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the training clips.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Another seed swaps others.")] = 0,
) -> None:
    """Exchange the sounds of a share of the training clips among themselves, to see what finds them; OUT links PREPARED's shards."""
    from training.correspondence.mismatch import swap as run

    print(
        f"{len(run(prepared, out, share=share, seed=seed))} clips swapped, listed in {out / 'swapped.json'}"
    )


def train(
    recipe: Path,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: denoiser.steps=10")] = None,
    stage: Annotated[
        str,
        typer.Option(
            help="all, vocoder, denoiser, distil, finetune or export; of SpecVQGAN all, vqgan, transformer or export."
        ),
    ] = "all",
    init: Annotated[Path | None, typer.Option(help="Bundle to start from.")] = None,
) -> None:
    """Train a recipe's parts, or resume, and write the bundle (of SpecVQGAN: the pipeline's folder)."""
    from training.recipe import load_recipe
    from training.train import train as run

    folder = run(load_recipe(recipe, set_), stage=stage, init=init)
    if folder:
        print(folder)


def export(
    recipe: Path,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: text_sigma=0.3")] = None,
    out: Annotated[Path | None, typer.Option(help="Bundle folder; bundle/ of the run by default.")] = None,
    attribution: Annotated[
        Path | None, typer.Option(help="CSV file,source,licence of the training videos.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Markdown for the model card; `clipsynth evaluate` writes results.md.")
    ] = None,
) -> None:
    """Write the bundle of a trained recipe: parts, retrieval index, model card."""
    from training.recipe import load_recipe
    from training.train import train as run

    print(run(load_recipe(recipe, set_), stage="export", out=out, attribution=attribution, results=results))


def average(
    first: Path,
    second: Path,
    out: Path,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the second's weights.")] = 0.5,
) -> None:
    """Average the weights of two bundles, of which one began with the other's: what fine-tuning learned, with less of what it lost."""
    from training.average import average as run

    run(first, second, share, out)
    print(out)
