"""`clipsynth evaluate` and `listen`: the paper's Tables 1 and 2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from clipsynth.commands import options as shared

OUT = Path("runs/evaluation")


def evaluate(
    clips: shared.Clips,
    queries: shared.Queries,
    labels: shared.Labels = None,
    out: Annotated[Path, Option(help="Folder for results, sounds and the judge.")] = OUT,
    system: Annotated[
        list[str] | None,
        Option(
            help="A row, NAME=KIND:ARGUMENT?option=value with the kind bundle, retriever, reconstruction, "
            "specvqgan, http, folder or module:function. By default the --model, its reconstruction and, "
            "with --prepared, its retriever."
        ),
    ] = None,
    query_kind: Annotated[list[str] | None, Option("--query", help="text or image; both by default.")] = None,
    prepared: Annotated[
        Path | None, Option(help="Output of `prepare` for the training clips, for the retriever.")
    ] = None,
    seeds: shared.Seeds = 3,
    per_class: shared.PerClass = 50,
    embedder: Annotated[
        list[str] | None,
        Option(
            help="classifier, melstats, random-conv, clap:FOLDER, yamnet:FILE or module:function:ARGUMENT; "
            "the first three by default. The table shows distances by the first embedder, and FAD by the "
            "second too."
        ),
    ] = None,
    inception: Annotated[
        Path | None, Option(help="Weights of torchvision's inception_v3, for FID/inception-v3.")
    ] = None,
    baseline: Annotated[
        str | None, Option(help="System whose text gap the others close; the first by default.")
    ] = None,
    duration: shared.Duration = 4.0,
    batch_size: shared.BatchSize = 8,
    rtf_clips: Annotated[int, Option(min=0, help="Queries timed alone; 0 leaves RTF out.")] = 5,
    resamples: shared.Resamples = 200,
    guidance_scale: Annotated[float | None, Option(min=0, help="Guidance scale of --model.")] = None,
    steps: Annotated[int | None, Option(min=1, max=200, help="Steps of --model.")] = None,
    model: shared.Bundle = None,
) -> None:
    """Compare systems on text and image queries, as in the paper's Table 1; resumes a stopped run."""
    from clipsynth.services.processes import let_threads_sleep

    let_threads_sleep()
    from evaluation.evaluate import EvaluateOptions, default_systems, parse_kinds
    from evaluation.evaluate import evaluate as run

    rows = system or default_systems(shared.settings_with(model=model).model, prepared, steps, guidance_scale)
    options = EvaluateOptions(
        clips=clips,
        queries=queries,
        out=out,
        systems=rows,
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
    print(run(options))


def listen(
    folder: Annotated[
        Path,
        Argument(help="Output of `clipsynth evaluate`, or a folder with a manifest.csv (system,query,file)."),
    ],
    score: Annotated[bool, Option("--score", help="Print the table of the ratings so far.")] = False,
    queries: Annotated[int, Option(min=1, help="Queries; raters hear each by every system.")] = 20,
    seed: Annotated[int, Option(help="Seed of the choice of queries and of the raters' orders.")] = 0,
    answers: Annotated[
        Path | None, Option(help="SQLite file; answers.sqlite in the folder by default.")
    ] = None,
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port to listen on.")] = 8010,
) -> None:
    """Serve a blind listening test of quality, relevance and noise as a web page, or print its scores."""
    from evaluation.listening_test.design import choose, make_items, read_folder
    from evaluation.listening_test.ratings import RatingStore
    from evaluation.listening_test.scores import to_markdown

    file = answers or folder / "answers.sqlite"
    if score:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there are no ratings yet")
        print(to_markdown(RatingStore(file).every()))
        return

    import uvicorn

    from evaluation.listening_test.server import create_app

    items = make_items(choose(read_folder(folder), queries, seed), seed)
    print(f"{len(items)} sounds; raters open http://{host}:{port}/?rater=NAME; the ratings are in {file}")
    uvicorn.run(create_app(items, RatingStore(file), seed=seed), host=host, port=port, log_level="warning")
