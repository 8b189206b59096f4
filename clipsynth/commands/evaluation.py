"""`clipsynth evaluate` and `listen`: the paper's two tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipsynth.commands.options import Bundle, settings_with


def evaluate(
    clips: Annotated[Path, typer.Option(help="Folder of labelled videos.")],
    queries: Annotated[Path, typer.Option(help='JSON {"classes": {label: [phrase, …]}}.')],
    labels: Annotated[
        Path | None, typer.Option(help="CSV file,label,split; CLIPS/manifest.csv by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results, sounds and the judge.")] = Path(
        "runs/evaluation"
    ),
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="A row, NAME=KIND:ARGUMENT?option=value: bundle, retriever, reconstruction, specvqgan, http, folder or "
            "module:function; by default the --model, its reconstruction and, with --prepared, its retriever."
        ),
    ] = None,
    query_kind: Annotated[
        list[str] | None, typer.Option("--query", help="text, image; both by default.")
    ] = None,
    prepared: Annotated[
        Path | None, typer.Option(help="What `prepare` made of the training clips, for the retriever.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Sounds of each query, for distances.")] = 3,
    per_class: Annotated[
        int, typer.Option(min=0, help="Sounds of each class, for agreement; 0: those for distances.")
    ] = 50,
    embedder: Annotated[
        list[str] | None,
        typer.Option(
            help="classifier, melstats, random-conv, clap:FOLDER or module:function:ARGUMENT; distances in the table are by the first, FAD by the second too; classifier, melstats and random-conv by default."
        ),
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help="torchvision's inception_v3 weights, for FID/inception-v3.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="System whose text gap is closed by the others; the first by default.")
    ] = None,
    duration: Annotated[float, typer.Option(min=0.5, help="Seconds of each sound.")] = 4.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Queries given to a system at once.")] = 8,
    rtf_clips: Annotated[int, typer.Option(min=0, help="Queries timed alone; 0 leaves RTF out.")] = 5,
    resamples: Annotated[int, typer.Option(min=10, help="Of the bootstrap.")] = 200,
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="Of --model.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=200, help="Of --model.")] = None,
    model: Bundle = None,
) -> None:
    """Compare systems on text and image queries, as the paper's Table 1 does; the same command goes on where it was ended."""
    from clipsynth.services.processes import let_threads_sleep

    let_threads_sleep()
    from evaluation.evaluate import EvaluateOptions, default_systems, parse_kinds
    from evaluation.evaluate import evaluate as run

    print(
        run(
            EvaluateOptions(
                clips=clips,
                queries=queries,
                out=out,
                systems=system
                or default_systems(settings_with(model=model).model, prepared, steps, guidance_scale),
                labels=labels,
                prepared=prepared,
                kinds=parse_kinds(query_kind),
                embedders=embedder or EvaluateOptions.embedders,
                inception=inception,
                seeds=seeds,
                per_class=per_class,
                duration_s=duration,
                batch_size=batch_size,
                rtf_clips=rtf_clips,
                resamples=resamples,
                baseline=baseline,
            )
        )
    )


def listen(
    folder: Annotated[
        Path, typer.Argument(help="Results of `clipsynth evaluate`, or a manifest.csv system,query,file.")
    ],
    score: Annotated[bool, typer.Option("--score", help="Print the table of the answers so far.")] = False,
    queries: Annotated[int, typer.Option(min=1, help="How many queries are heard, of every system.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the choice of queries and the orders.")] = 0,
    answers: Annotated[
        Path | None, typer.Option(help="SQLite file; answers.sqlite in the folder by default.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8010,
) -> None:
    """Serve a blind listening test of quality, relevance and noise as a web page, or print its scores."""
    from evaluation.listening_test.design import choose, make_items, read_folder
    from evaluation.listening_test.ratings import RatingStore
    from evaluation.listening_test.scores import to_markdown

    file = answers or folder / "answers.sqlite"
    if score:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: nobody has rated yet")
        print(to_markdown(RatingStore(file).every()))
        return

    import uvicorn

    from evaluation.listening_test.server import create_app

    items = make_items(choose(read_folder(folder), queries, seed), seed)
    print(f"{len(items)} sounds; raters open http://{host}:{port}/?rater=NAME; answers go to {file}")
    uvicorn.run(create_app(items, RatingStore(file), seed=seed), host=host, port=port, log_level="warning")
