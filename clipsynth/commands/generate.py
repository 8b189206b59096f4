"""`clipsynth generate`: prompts and images to files, with a bundle in this process or a service."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from clipsynth.commands.options import Bundle, Device, read_attributes, settings_with

if TYPE_CHECKING:
    from PIL import Image

    from clipsynth.client.client import Client
    from clipsynth.schemas.prompts import StoredItem
    from clipsynth.settings import Settings

SUFFIX: dict[str, str] = {"wav_24": "wav", "wav_float": "wav"}  # other formats are their own suffix


@dataclass(frozen=True)
class PromptQuery:
    """The query of one sound: a text, an image file, or both."""

    prompt: str | None
    image: Path | None

    @property
    def slug(self) -> str:
        """A name for its files."""
        name = self.prompt or (self.image or Path()).stem or "timeline"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]


# Returns the files' bytes for a query and seed; calls `on_step(done, all)`.
Make = Callable[[PromptQuery, int, Callable[[int, int], None]], list[bytes]]


def generate(
    prompts: Annotated[list[str] | None, Argument(help="Prompts; each becomes a sound.")] = None,
    output: Annotated[
        Path | None,
        Option("--output", "-o", help="A file, or a folder for several queries: out.wav or out/."),
    ] = None,
    from_file: Annotated[
        Path | None, Option("--from", help="A text file with one prompt per line; # starts a comment.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        Option(help="An image: with a prompt, one for both; without, each becomes a sound."),
    ] = None,
    timeline: Annotated[
        Path | None,
        Option(
            help="A JSON file instead of prompts: a list of items with text or image (a file), start_s, "
            "end_s, weight, attributes and fade_s."
        ),
    ] = None,
    loop: Annotated[bool, Option("--loop", help="The end continues at the beginning.")] = False,
    negative_prompt: Annotated[str | None, Option(help="Sounds to avoid.")] = None,
    composition: Annotated[
        str | None,
        Option(
            help="How prompt and image are combined: set (at once), compose (each guides), mix (two sounds)."
        ),
    ] = None,
    literal: Annotated[bool, Option("--literal", help="A prompt of several sounds is not split.")] = False,
    attribute: Annotated[
        list[str] | None,
        Option(
            help="Attribute such as pitch=0.8: 0 to 1 of loudness, brightness, pitch, noisiness or density. "
            "Words of a prompt (a loud dog) set them too, except with --attribute none."
        ),
    ] = None,
    seed: Annotated[int, Option(min=0, max=2**32 - 1)] = 0,
    steps: Annotated[int | None, Option(min=1, max=200, help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, Option(min=0)] = None,
    duration: Annotated[float | None, Option(help="Seconds.")] = None,
    num_outputs: Annotated[int, Option(min=1, max=8, help="Sounds per query.")] = 1,
    output_format: Annotated[
        str, Option("--format", help="wav, wav_24, wav_float, flac, ogg or mp3.")
    ] = "wav",
    server: Annotated[str | None, Option(help="URL of a service, such as http://localhost:8000.")] = None,
    api_key: Annotated[str | None, Option(envvar="CLIPSYNTH_API_KEY", help="API key of the service.")] = None,
    patience: Annotated[
        float, Option(min=0, help="Seconds to retry while the service is away or full.")
    ] = 120.0,
    model: Bundle = None,
    device: Device = None,
) -> None:
    """Generate sounds, without a server or with --server.

    clipsynth generate "a dog barking" -o dog.wav

    clipsynth generate --from prompts.txt -o sounds/ --server http://localhost:8000
    """
    items = read_timeline(timeline) if timeline else None
    queries = (
        [PromptQuery(None, None)]
        if items is not None
        else read_queries(prompts or [], from_file, image or [])
    )
    if items is not None and (prompts or from_file or image):
        raise ValueError("--timeline cannot be combined with prompts, --from or --image")
    paths = name_files(queries, output, num_outputs, output_format)
    fields = {
        "negative_prompt": negative_prompt,
        "composition": composition,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "duration_s": duration,
        "loop": loop or None,
        "timeline": items,
        "attributes": read_attributes(attribute),
        "interpret": False if literal else None,
    }
    with ExitStack() as stack:
        if server:
            from clipsynth.client.client import Client

            make = stack.enter_context(
                _by_service(
                    Client(server, api_key=api_key, patience_s=patience), num_outputs, output_format, fields
                )
            )
        else:
            make = _by_bundle(settings_with(model=model, device=device), num_outputs, output_format, fields)
        _write(queries, paths, seed, make)


def read_queries(prompts: list[str], from_file: Path | None, images: list[Path]) -> list[PromptQuery]:
    """Return the queries of a command line.

    Raises:
        ValueError: there is none, or several images beside a prompt.
        FileNotFoundError: no such file.
    """
    lines = from_file.read_text().splitlines() if from_file else []
    texts = [*prompts, *(line.strip() for line in lines if line.strip() and not line.startswith("#"))]
    if missing := [path for path in images if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]}: no such image")
    if texts and len(images) > 1:
        raise ValueError("with a prompt, one --image at most")
    if not texts and not images:
        raise ValueError("give a prompt, --image or --from")
    if texts:
        return [PromptQuery(text, images[0] if images else None) for text in texts]
    return [PromptQuery(None, path) for path in images]


def read_timeline(file: Path) -> list[dict[str, Any]]:
    """Return the items of a timeline file; paths of images are relative to it.

    Raises:
        ValueError: not a list of items, or a bad one.
        FileNotFoundError: no such file or image.
    """
    from pydantic import ValidationError

    from clipsynth.schemas.request import GenerationRequest

    items = json.loads(file.read_text())
    try:
        GenerationRequest.model_validate({"timeline": items})
    except ValidationError as error:
        place = "/".join(map(str, error.errors()[0]["loc"][1:]))
        raise ValueError(f"{file}: {place}: {error.errors()[0]['msg']}") from None
    for item in items:
        if item.get("image") is not None:
            item["image"] = file.parent / item["image"]
            if not item["image"].is_file():
                raise FileNotFoundError(f"{item['image']}: no such image")
    return list(items)


def name_files(
    queries: list[PromptQuery], output: Path | None, num_outputs: int, output_format: str
) -> list[list[Path]]:
    """Return the files of each query: `output` for one query, names in the folder `output` for several.

    Raises:
        ValueError: several queries, and `output` is a file.
    """
    suffix = SUFFIX.get(output_format, output_format)
    if len(queries) == 1 and not (
        output and (output.is_dir() or str(output).endswith("/") or not output.suffix)
    ):
        first = [output or Path(f"out.{suffix}")]
    else:
        folder = output or Path("out")
        if folder.is_file() or folder.suffix:
            raise ValueError(f"{folder} is one file, and there are {len(queries)} queries; name a folder")
        folder.mkdir(parents=True, exist_ok=True)
        first = [folder / f"{n:03d}-{query.slug}.{suffix}" for n, query in enumerate(queries)]
    return [
        [path if n == 0 else path.with_stem(f"{path.stem}-{n}") for n in range(num_outputs)] for path in first
    ]


def _write(queries: list[PromptQuery], paths: list[list[Path]], seed: int, make: Make) -> None:
    from rich.console import Console
    from rich.progress import Progress

    started = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("generate", total=len(queries))
        for n, (query, files) in enumerate(zip(queries, paths, strict=True)):

            def show(done: int, total: int, before: int = n) -> None:
                progress.update(task, completed=before + done / total)

            for path, data in zip(files, make(query, seed, show), strict=True):
                path.write_bytes(data)
                print(path)
            progress.update(task, completed=n + 1)
    count = sum(map(len, paths))
    print(f"{count} sounds in {time.perf_counter() - started:.2f} s", file=sys.stderr)


def _by_bundle(settings: Settings, num_outputs: int, output_format: str, fields: dict[str, Any]) -> Make:
    from app.requests.texts import readable
    from clipsynth.schemas.generation import JobPayload, output_seed
    from clipsynth.schemas.prompt_parser import resolve_attributes
    from clipsynth.schemas.sentences import fields_of_parts
    from clipsynth.services.processes import let_threads_sleep

    let_threads_sleep()
    from worker.main import read_scripts
    from worker.predictor import Predictor
    from worker.understanding.sentences import parts_of

    predictor = Predictor.setup(settings)
    manifest = predictor.manifest
    taken = predictor.pipeline.attributes
    reader = replace(manifest, scripts=tuple(read_scripts(settings.model, manifest)))
    own = fields.keys() - {"attributes", "timeline", "interpret"}
    defaults = {name: getattr(manifest, name) for name in own if hasattr(manifest, name)}
    resolved = defaults | {name: fields[name] for name in own if fields[name] is not None}
    if fields["timeline"]:
        resolved["duration_s"] = fields["duration_s"] or max(item["end_s"] for item in fields["timeline"])

    options = {
        "composition": fields["composition"],
        "duration_s": fields["duration_s"],
        "default_s": manifest.duration_s,
        "longest_s": settings.max_duration_s,
    }

    def read(text: str | None) -> str | None:
        return text and readable(text, reader, "a prompt")

    def make(query: PromptQuery, seed: int, on_step: Callable[[int, int], None]) -> list[bytes]:
        items = fields["timeline"] or []
        images = {
            str(path): open_image(path) for path in (query.image, *(i.get("image") for i in items)) if path
        }
        frames, text, asked = predictor.frames, read(query.prompt), fields["attributes"]
        is_plain = not query.image and fields["interpret"] is None
        parts = parts_of(text, frames.place) if text and frames and is_plain else []
        is_one = len(parts) <= 1
        prompt, attributes = resolve_attributes(text if is_one else None, asked, taken, model=manifest.name)
        sounds = {} if is_one else fields_of_parts(parts, asked, taken, **options)
        timeline = [stored_item(item | {"text": read(item.get("text"))}) for item in items]
        request = {
            **resolved,
            **sounds,
            **({"timeline": timeline} if timeline else {}),
            "model": manifest.name,
            "negative_prompt": read(fields["negative_prompt"]),
            "prompt": prompt,
            "image_key": str(query.image) if query.image else None,
            "attributes": attributes,
            "num_outputs": 1,
            "output_formats": [output_format],
        }
        payloads = [JobPayload(**request, seed=output_seed(seed, n)) for n in range(num_outputs)]
        waves = [predictor.predict(payload, images, on_step=on_step) for payload in payloads]
        return [predictor.encode_response(wave, output_format) for wave in waves]  # type: ignore[arg-type]

    return make


def open_image(path: Path) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


def stored_item(item: dict[str, Any]) -> StoredItem:
    """Return an item of a timeline file as a payload has it; the path of its image is its key."""
    from clipsynth.schemas.prompts import StoredItem

    own = {name: value for name, value in item.items() if name != "image"}
    return StoredItem(**own, image_key=str(item["image"]) if item.get("image") else None)


@contextmanager
def _by_service(
    client: Client, num_outputs: int, output_format: str, fields: dict[str, Any]
) -> Iterator[Make]:
    from clipsynth.schemas.generation import Generation

    with client:

        def make(query: PromptQuery, seed: int, on_step: Callable[[int, int], None]) -> list[bytes]:
            def show(generation: Generation) -> None:
                if generation.progress:
                    on_step(generation.progress.step, generation.progress.num_steps)

            sounds = client.generate(
                query.prompt,
                image=query.image,
                seed=seed,
                num_outputs=num_outputs,
                output_formats=[output_format],
                on_progress=show,
                **{name: value for name, value in fields.items() if value is not None},
            )
            return [sound.data for sound in sounds]

        yield make
