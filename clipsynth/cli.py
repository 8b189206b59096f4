"""The command line: the one place that knows every floor. Imports lazily, inside each command."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from clipsynth.commands.doctor import doctor
from clipsynth.commands.generate import generate
from clipsynth.commands.inspect import inspect, models
from clipsynth.errors import ClipSynthError, ModelUnusable
from clipsynth.logs import set_up
from clipsynth.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text or picture in, sound out.",
)
Bundle = Annotated[Path | None, typer.Option("--model", help="Bundle folder; the demo's by default.")]


def _settings(**overrides: Any) -> Settings:
    return Settings(**{k: v for k, v in overrides.items() if v is not None})


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 8000 by default.")] = None,
    model: Bundle = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
) -> None:
    """Start API, worker and (unless CLIPSYNTH_REDIS_URL is set) Redis; Ctrl+C stops all."""
    from clipsynth.supervisor import serve as run

    raise SystemExit(run(_settings(host=host, port=port, model=model, device=device)))


@app.command()
def api() -> None:
    """Start the HTTP API alone (needs CLIPSYNTH_REDIS_URL)."""
    import uvicorn

    from app.auth import warning
    from app.main import create_app

    settings = Settings()
    if message := warning(settings):
        logging.getLogger("clipsynth").warning(message)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=5,  # who follows events would hold it up
    )


@app.command()
def openapi() -> None:
    """Print the API's OpenAPI document; docs/openapi.json is this."""
    import json

    from app.main import create_app

    print(json.dumps(create_app(Settings(redis_url="redis://nowhere")).openapi(), indent=2))


@app.command()
def worker() -> None:
    """Start a worker alone (needs CLIPSYNTH_REDIS_URL)."""
    from worker.main import main as run

    run(Settings())


@app.command()
def janitor() -> None:
    """Remove expired generations and their files, for ever (needs CLIPSYNTH_REDIS_URL)."""
    import signal
    import threading

    from clipsynth.janitor import run

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    run(Settings(), stop)


@app.command()
def webhooks() -> None:
    """Tell clients' addresses of their generations, for ever (needs CLIPSYNTH_REDIS_URL)."""
    from clipsynth.webhooks import run

    run(Settings())


keys = typer.Typer(no_args_is_help=True, help="API keys of the service with this data folder or Redis.")
app.add_typer(keys, name="keys")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="For whom or what it is.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="generate, read or admin (all); by default generate and read.")
    ] = None,
) -> None:
    """Make a key and print it, once."""
    from clipsynth.keys import SCOPES, create_key
    from clipsynth.reach import reach_redis

    scopes = [s for s in SCOPES if s in (scope or ["generate", "read"])]
    if unknown := set(scope or ()) - set(SCOPES):
        raise ValueError(f"no scope: {', '.join(sorted(unknown))}; there are {', '.join(SCOPES)}")
    with reach_redis(Settings()) as redis:
        key, token = create_key(redis, name, scopes)
    print(token)
    print(
        f"key {key.id} {key.name!r}: {', '.join(key.scopes)}; it is not shown again, keep it", file=sys.stderr
    )
    print(f"its webhooks are signed with {key.webhook_secret}", file=sys.stderr)


@keys.command("list")
def list_keys() -> None:
    """Print id, time, scopes and name of all keys."""
    from clipsynth.keys import list_keys
    from clipsynth.reach import reach_redis

    with reach_redis(Settings()) as redis:
        found = list_keys(redis)
    for key in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_at))
        print(key.id, made, ",".join(key.scopes) if key.revoked_at is None else "revoked", key.name, sep="  ")


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` has it.")]) -> None:
    """Have a key refused from now on."""
    from clipsynth.keys import revoke_key
    from clipsynth.reach import reach_redis

    with reach_redis(Settings()) as redis:
        print(f"revoked {revoke_key(redis, key_id).name!r}")


for command in (generate, models, inspect, doctor):
    app.command()(command)


@app.command()
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

    from models.encoders import OpenClipEncoder, PackagedEncoder
    from training.prepare import PrepareOptions
    from training.prepare import prepare as run

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


@app.command()
def train(
    recipe: Path,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: denoiser.steps=10")] = None,
    stage: Annotated[str, typer.Option(help="all, vocoder, denoiser, finetune or export.")] = "all",
    init: Annotated[Path | None, typer.Option(help="Bundle to start from.")] = None,
) -> None:
    """Train a recipe's vocoder and denoiser, or resume, and write the bundle."""
    from training.recipe import load_recipe
    from training.train import train as run

    folder = run(load_recipe(recipe, set_), stage=stage, init=init)  # type: ignore[arg-type]
    if folder:
        print(folder)


@app.command()
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


@app.command()
def evaluate(
    clips: Annotated[Path, typer.Option(help="Folder of labelled videos.")],
    queries: Annotated[Path, typer.Option(help='JSON {"classes": {label: [phrase, …]}}.')],
    labels: Annotated[
        Path | None, typer.Option(help="CSV file,label,split; CLIPS/manifest.csv by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results and the judge.")] = Path("runs/evaluation"),
    per_class: Annotated[int, typer.Option(min=1, help="Samples of each class and kind of query.")] = 10,
    guidance_scale: Annotated[float | None, typer.Option(min=0)] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=200)] = None,
    model: Bundle = None,
) -> None:
    """Measure how often an independent classifier hears in a bundle's sounds what was asked for."""
    from evaluation.report import evaluate as run

    table = run(
        _settings(model=model).model,
        clips=clips,
        labels=labels or clips / "manifest.csv",
        queries=queries,
        out=out,
        per_class=per_class,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
    )
    print(table)


def main() -> None:
    """Entry point: errors that people can act on are one line and exit code 1."""
    for package in ("app", "worker", "models", "training", "evaluation"):
        spec = importlib.util.find_spec(package)
        if spec and spec.origin and Path(spec.origin).parents[1] != Path(__file__).parents[1]:
            raise SystemExit(
                f"error: the package {package!r} of CLIPSynth is shadowed by {spec.origin}; use an environment of its own"
            )
    try:
        set_up(Settings().log_format)
        app()
    except ModelUnusable as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(os.EX_CONFIG) from None
    except (ClipSynthError, ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
