"""`clipsynth prepare`, `merge`, `correspondence`, `mismatch`, `train`, `export` and `average`."""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from clipsynth.limited_child import Limits

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
VIDEO_MEMORY = 4 << 30  # bytes that decoding a video may take
WINDOW_BYTES = 1 << 30  # of a window's sound and frames
MinMotion = Annotated[
    float, Option(min=0, max=1, help="Leave out clips whose frames change less, e.g. 0.001.")
]
MaxSpeech = Annotated[
    float | None, Option(min=0, max=1, help="Measure speech; leave out clips with more of it.")
]


def prepare(
    videos: Path,
    out: Path,
    clip_model: Annotated[
        str | None, Option(help="A model of open_clip, e.g. ViT-B-32; default: the packaged encoder.")
    ] = None,
    clip_weights: Annotated[
        str, Option(help="Weights of that model: a local file or a tag of open_clip's hub.")
    ] = "",
    listing: Annotated[
        Path | None, Option("--list", help="Only the videos in the JSON of MUSIC or the CSV of VGGSound.")
    ] = None,
    captions: Annotated[Path | None, Option(help="CSV file,caption: for models that train on text.")] = None,
    clip_seconds: Annotated[float, Option(min=0.5, help="Length of the clips.")] = 5.0,
    frames_per_s: Annotated[float, Option(min=0.01, help="Video frames to keep per second.")] = 1.0,
    workers: Annotated[int, Option(min=0, help="Number of processes; 0 uses this one.")] = CORES,
    executor: Annotated[
        Literal["local", "ray"], Option(help="ray: on all nodes of the cluster of RAY_ADDRESS.")
    ] = "local",
    device: Annotated[
        str | None, Option(help="Compute embeddings there in batches, e.g. cuda; default: on the CPU.")
    ] = None,
    part: Annotated[
        str | None, Option(metavar="I/N", help="Only one of N parts, for several machines and `merge`.")
    ] = None,
    video_timeout_s: Annotated[
        float, Option(min=1, help="Skip a video that takes longer to decode.")
    ] = 600.0,
    remove: Annotated[
        bool, Option("--remove", help="Drop known videos even if most of them are gone.")
    ] = False,
    min_motion: MinMotion = 0.0,
    max_speech: MaxSpeech = None,
) -> None:
    """Turn a folder of videos into shards of features to train on, or add what is new in it."""
    from rich.progress import Progress

    from clipsynth.services.limited_process import stream_limited
    from models.networks.multilingual import MultilingualEncoder
    from models.networks.open_clip import OpenClipEncoder
    from training.prepare.finish import Filters
    from training.prepare.folder import PrepareOptions
    from training.prepare.prepare import prepare as run

    limits = Limits(
        cpu_s=video_timeout_s, wall_s=video_timeout_s, memory_bytes=VIDEO_MEMORY, output_bytes=WINDOW_BYTES
    )
    encoder = OpenClipEncoder(clip_model, clip_weights) if clip_model else MultilingualEncoder()
    with ExitStack() as stack:
        progress: Progress | None = None
        for done, total in run(
            videos,
            out,
            encoder,
            options=PrepareOptions(clip_seconds, frames_per_s, speech=max_speech is not None),
            listing=listing,
            captions=captions,
            workers=workers,
            device=device,
            executor=executor,
            part=_read_part(part) if part else None,
            stream=partial(stream_limited, limits=limits),
            remove=remove,
            filters=Filters(min_motion, 1.0 if max_speech is None else max_speech),
        ):
            if progress is None:
                # Shown from here on: an error before it is one line, without an empty bar.
                progress = stack.enter_context(Progress())
                bar = progress.add_task("prepare")
            stage = "prepare" if done < total else "pack shards"
            progress.update(bar, completed=done, total=total, description=stage)
    _print_report(out)


def _read_part(text: str) -> tuple[int, int]:
    """Return (I, N) of "I/N"."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise typer.BadParameter(f"--part {text}: expected I/N with 1 <= I <= N, such as 2/8")
    return int(match[1]), int(match[2])


def merge(out: Path, parts: list[Path], min_motion: MinMotion = 0.0, max_speech: MaxSpeech = None) -> None:
    """Join the folders of `prepare --part` into OUT, with the bytes of a folder made in one go."""
    from training.prepare.finish import Filters
    from training.prepare.prepare import merge as run

    run(out, parts, Filters(min_motion, 1.0 if max_speech is None else max_speech))
    _print_report(out)


def _print_report(out: Path) -> None:
    path = out / "report.json"
    report = json.loads(path.read_text())
    parts = ", ".join(f"{len(report[name])} {name}" for name in ("skipped", "damaged") if report[name])
    print(f"{report['clips']} clips, {report['hours']:g} h; videos: {parts or 'all used'}; see {path}")


def correspondence(
    prepared: Path,
    wav2clip: Annotated[
        Path | None, Option(help="Local file with Wav2CLIP's weights, for clips embedded with CLIP ViT-B/32.")
    ] = None,
) -> None:
    """Score how well each clip's sound fits its image, and write PREPARED/agreement.json."""
    from training.correspondence.score import write_correspondence

    print(write_correspondence(prepared, wav2clip))


def mismatch(
    prepared: Path,
    out: Path,
    share: Annotated[float, Option(min=0, max=1, help="Share of the training clips.")] = 0.2,
    seed: Annotated[int, Option(help="Chooses the clips.")] = 0,
) -> None:
    """Exchange sounds between some training clips, to test correspondence scores; OUT links to the shards."""
    from training.correspondence.mismatch import exchange_sounds

    exchanged = exchange_sounds(prepared, out, share=share, seed=seed)
    print(f"{len(exchanged)} clips mismatched, listed in {out / 'swapped.json'}")


def train(
    recipe: Path,
    set_: Annotated[list[str] | None, Option("--set", help="Override: denoiser.steps=10")] = None,
    stage: Annotated[
        str,
        Option(
            help="all, vocoder, denoiser, distil, finetune or export; "
            "for SpecVQGAN: all, vqgan, transformer or export."
        ),
    ] = "all",
    init: Annotated[Path | None, Option(help="Bundle whose weights to start from.")] = None,
    fork: Annotated[
        Path | None, Option(help="Continue in this new folder, with another recipe or other clips.")
    ] = None,
) -> None:
    """Train the parts of a recipe or resume, then write the bundle (for SpecVQGAN: the pipeline folder)."""
    from training.recipe import load_recipe
    from training.train import train as run

    folder = run(load_recipe(recipe, set_), stage=stage, init=init, fork_to=fork)
    if folder:
        print(folder)


def export(
    recipe: Path,
    set_: Annotated[list[str] | None, Option("--set", help="Override: text_sigma=0.3")] = None,
    out: Annotated[Path | None, Option(help="Bundle folder; default: bundle/ of the run.")] = None,
    attribution: Annotated[
        Path | None, Option(help="CSV file,source,licence of the training videos.")
    ] = None,
    results: Annotated[
        Path | None, Option(help="Markdown for the model card; `clipsynth evaluate` writes results.md.")
    ] = None,
) -> None:
    """Write the bundle of a trained recipe: parts, retrieval index and model card."""
    from training.recipe import load_recipe
    from training.train import train as run

    print(run(load_recipe(recipe, set_), stage="export", out=out, attribution=attribution, results=results))


def average(
    first: Path,
    second: Path,
    out: Path,
    share: Annotated[float, Option(min=0, max=1, help="Share of the second bundle's weights.")] = 0.5,
) -> None:
    """Average the weights of two bundles, one fine-tuned from the other, so that less is forgotten."""
    from training.average import average as run

    run(first, second, share, out)
    print(out)
