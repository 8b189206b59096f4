"""The bundle of a run: its parts in half precision, the retrieval index of the training clips, and the model card."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import SpeechT5HifiGan

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
    """Return the retrieval index of training clips, with their sources and licences, and images of their sounds; a clip's source is its video there."""
    unknown = {"source": NOT_STATED, "licence": NOT_STATED}
    lines = [
        {name: line[name] for name in INDEX_FIELDS} | dict(attribution.get(line["video"], unknown))
        for line in clips.index
    ]
    images = None
    if len(clips) <= MAX_CLIPS:
        videos = [frozenset({line["video"]}) for line in clips.index]
        log_mels = [clips.mel(i).numpy() for i in range(len(clips))]
        images = Thumbnails.of(log_mels, videos, frame_rate=MelSpectrogram().frame_rate)
    return Index(torch.stack([clips.embeds(i).mean(0) for i in range(len(clips))]), lines, images)


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
        attribution: CSV file, source, licence of the training videos; without it the index and the card say "not stated".
        results: Markdown that the card shows under "Evaluation".

    Raises:
        ValueError: the attribution cannot be read.
    """
    known = read_attribution(attribution) if attribution else {}
    pipe = ClipSynthPipeline(load_encoder(Path(recipe.clips) / "encoder"), *parts)
    pipe.manifest = Manifest(
        name=recipe.name,
        min_duration_s=0.5,
        max_duration_s=clips.max_duration_s,
        output_gain=round(clips.output_gain, 4),
        attributes=Scales.of(by_name(line["attributes"]) for line in clips.train.index).to_lists(),
        **recipe.requests.model_dump(),
    )
    for part in parts[:3]:
        part.half()
    pipe.index = build_index(clips.train, known)
    pipe.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(recipe, pipe, pipe.index.clips, results))


def model_card(
    recipe: Recipe, pipe: ClipSynthPipeline, lines: list[dict[str, Any]], results: Path | None
) -> str:
    """Return the model card: parts, training, data with their licences, figures, limits."""
    manifest, d, v = pipe.manifest, recipe.denoiser, recipe.vocoder
    environment = json.loads((Path(recipe.run) / "denoiser" / "environment.json").read_text())
    states = {
        "denoiser": load_state(Path(recipe.run) / "denoiser" / "best.pt") or {},
        "vocoder": load_state(recipe.vocoder_folder / "state.pt") or {},
    }
    dev = states["denoiser"].get("dev")
    learned_guidance = ""
    if pipe.distilled_guidance_range:
        distilled = load_state(Path(recipe.run) / "distil" / "best.pt") or {}
        learned_guidance = (
            f"\n- Guidance of weight {pipe.distilled_guidance_range[0]:g} to {pipe.distilled_guidance_range[1]:g} learned by the denoiser itself: {distilled.get('step', '?')} steps more; "
            f"mean squared distance to guidance in two passes at the default weight {distilled.get('dev', math.nan):.4f} on the same grid, where guidance is on."
        )
    until = "on" if v.finetune_adversarial else f"to {v.steps}"
    played = v.adversarial_from < states["vocoder"].get("step", 0)
    discriminators = (
        f"with discriminators from step {v.adversarial_from} {until}" if played else "without discriminators"
    )
    licences = Counter((line["source"], line["licence"]) for line in lines)
    hours = sum(line["duration_s"] for line in lines) / 3600
    sizes = {
        name: sum(p.numel() for p in getattr(pipe, name).parameters())
        for name in ("condition_encoder", "denoiser", "vocoder")
    }
    learned = {
        "image": "frames alone; no label, no text",
        "text": "captions (the CLIPSynth-Text variant)",
        "hybrid": "frames and captions (the CLIPSynth-Hybrid variant)",
    }
    return f"""# Model card: {manifest.name}

Text- and image-to-audio, {manifest.sample_rate / 1000:g} kHz mono, {manifest.min_duration_s:g} to {manifest.max_duration_s:g} s. A bundle of CLIPSynth, a diffusers pipeline folder;
defaults: {manifest.num_inference_steps} steps, guidance {manifest.guidance_scale:g} on t in [{manifest.guidance_interval[0]:g}, {manifest.guidance_interval[1]:g}), time shift {manifest.time_shift:g}.

## Training

- Learned from: {learned[d.condition]}.
- Command: `clipsynth {" ".join(environment["command"])}`, at git commit {environment["git_commit"] or "unknown"}.
- Denoiser: {states["denoiser"].get("step", "?")} steps of batch {d.batch_size}; flow loss on held-out `dev` clips {"not measured" if dev is None else f"{dev:.4f}"} at a fixed grid of times and noises.{learned_guidance}
- Vocoder: {states["vocoder"].get("step", "?")} steps of batch {v.batch_size}, {discriminators}; the last {max(0, states["vocoder"].get("step", 0) - v.steps)} on mels of the denoiser.
- Parts: {type(pipe.encoder).__name__}, not trained; {", ".join(f"{name} {count / 1e6:.2f} M parameters" for name, count in sizes.items())}.
- Device: {environment["device"]}; {", ".join(f"{name} {v}" for name, v in environment["packages"].items())}.

## Data

{len(lines)} training clips, {hours:.2f} hours, listed in `index.jsonl`. The clips themselves are not part of the bundle.

| source | licence | clips |
|---|---|---:|
{chr(10).join(f"| {source} | {licence} | {count} |" for (source, licence), count in sorted(licences.items()))}

## Evaluation

{results.read_text().strip() if results else "Not measured."}

## Limits

It knows the kinds of sound in its training clips and no others; what is far from them comes out as the nearest of them, or as noise. Where a
source's licence is not stated, treat the weights as for research and development.
"""
