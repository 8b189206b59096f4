"""Write the bundle of a run: parts in half precision, retrieval index, model card."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import torch
from transformers import SpeechT5HifiGan
from transformers.utils.logging import disable_progress_bar

from models.audio.attributes import Scales, by_name
from models.audio.mel import MelSpectrogram
from models.bundle import Manifest
from models.networks.condition_encoder import ConditionEncoder
from models.networks.denoiser import Denoiser
from models.networks.load_encoder import load_encoder
from models.pipeline import ClipSynthPipeline
from models.retrieval.clip_index import Index
from models.retrieval.thumbnails import MAX_CLIPS, Thumbnails
from training.data.clips import Clips, ClipSet
from training.recipe import Recipe
from training.state import load_state

NOT_STATED = "not stated"
CARD = Path(__file__).with_name("model_card.md.jinja")
INDEX_FIELDS = ("video", "start_s", "duration_s", "attributes")


def read_attribution(path: Path) -> dict[str, dict[str, str]]:
    """Return {file: {"source", "licence"}} of a CSV with the columns file, source and licence.

    Raises:
        ValueError: a column is missing.
    """
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    for column in ("file", "source", "licence"):
        if not rows or column not in rows[0]:
            raise ValueError(f"{path} needs rows with a column {column!r}")
    return {row["file"]: {name: row[name] or NOT_STATED for name in ("source", "licence")} for row in rows}


def build_index(clips: Clips, attribution: Mapping[str, Mapping[str, str]]) -> Index:
    """Return the retrieval index of the training clips, with sources, licences and images of their sounds."""
    unknown = {"source": NOT_STATED, "licence": NOT_STATED}
    lines = [
        {name: line[name] for name in INDEX_FIELDS} | dict(attribution.get(line["video"], unknown))
        for line in clips.index
    ]
    embeds = torch.stack([clips.embeds(i).mean(0) for i in range(len(clips))])
    if bad := (~embeds.isfinite().all(1)).nonzero().flatten().tolist():
        raise ValueError(f"not exported: the embedding of {clips.describe(bad[0])}; prepare it again")
    images = None
    if len(clips) <= MAX_CLIPS:
        videos = [frozenset({line["video"]}) for line in clips.index]
        log_mels = [clips.mel(i).numpy() for i in range(len(clips))]
        images = Thumbnails.of(log_mels, videos, frame_rate=MelSpectrogram().frame_rate)
    return Index(embeds, lines, images)


def check_finite(part: torch.nn.Module) -> None:
    """Check the weights and buffers of a part.

    Raises:
        ValueError: one is not finite; the message names it.
    """
    for name, tensor in part.state_dict().items():
        if not tensor.isfinite().all():
            kind = type(part).__name__
            raise ValueError(f"not exported: {name} of {kind} is not finite; train it again from the start")


def export(
    recipe: Recipe,
    clips: ClipSet,
    parts: tuple[ConditionEncoder, Denoiser, SpeechT5HifiGan, MelSpectrogram],
    folder: Path,
    *,
    attribution: Path | None = None,
    results: Path | None = None,
) -> None:
    """Write the bundle of trained parts to `folder`.

    Args:
        attribution: CSV file, source, licence of the training videos; None gives "not stated".
        results: Markdown for the section "Evaluation" of the card.

    Raises:
        ValueError: the attribution cannot be read, or a weight or an embedding is not finite in half
            precision.
    """
    for part in parts[:3]:
        check_finite(part.half())
    known = read_attribution(attribution) if attribution else {}
    pipe = ClipSynthPipeline(load_encoder(clips.folder / "encoder"), *parts)
    pipe.manifest = Manifest(
        name=recipe.name,
        min_duration_s=0.5,
        max_duration_s=clips.max_duration_s,
        output_gain=round(clips.output_gain, 4),
        attributes=Scales.of(by_name(clips.train.attributes(i)) for i in range(len(clips.train))).to_lists(),
        **recipe.requests.model_dump(),
    )
    pipe.index = build_index(clips.train, known)
    disable_progress_bar()
    pipe.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(recipe, pipe, pipe.index.clips, results))


def model_card(
    recipe: Recipe, pipe: ClipSynthPipeline, lines: list[dict[str, Any]], results: Path | None
) -> str:
    run = Path(recipe.run)
    # Markdown of our own figures, no HTML.
    template = jinja2.Environment(keep_trailing_newline=True).from_string(CARD.read_text())  # noqa: S701
    return template.render(
        g="{:g}".format,
        m=pipe.manifest,
        d=recipe.denoiser,
        v=recipe.vocoder,
        environment=json.loads((run / "denoiser" / "environment.json").read_text()),
        best=load_state(run / "denoiser" / "best.pt") or {},
        guidance=pipe.distilled_guidance_range,
        distilled=load_state(run / "distil" / "best.pt") or {},
        vocoder_steps=(load_state(recipe.vocoder_folder / "state.pt") or {}).get("step", 0),
        vocoder=type(pipe.vocoder).__name__,
        vocoder_run=recipe.vocoder_run,
        encoder=type(pipe.encoder).__name__,
        sizes=[
            (name, sum(p.numel() for p in getattr(pipe, name).parameters()))
            for name in ("condition_encoder", "denoiser", "vocoder")
        ],
        lines=lines,
        licences=sorted(Counter((line["source"], line["licence"]) for line in lines).items()),
        results=results.read_text().strip() if results else "Not measured.",
    )
