"""Write the bundle of a run: parts in half precision, retrieval index, model card."""

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
    pipe = ClipSynthPipeline(load_encoder(Path(recipe.clips) / "encoder"), *parts)
    pipe.manifest = Manifest(
        name=recipe.name,
        min_duration_s=0.5,
        max_duration_s=clips.max_duration_s,
        output_gain=round(clips.output_gain, 4),
        attributes=Scales.of(by_name(line["attributes"]) for line in clips.train.index).to_lists(),
        **recipe.requests.model_dump(),
    )
    pipe.index = build_index(clips.train, known)
    pipe.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(recipe, pipe, pipe.index.clips, results))


def model_card(
    recipe: Recipe, pipe: ClipSynthPipeline, lines: list[dict[str, Any]], results: Path | None
) -> str:
    """Return the model card as Markdown."""
    m, d, v = pipe.manifest, recipe.denoiser, recipe.vocoder
    run = Path(recipe.run)
    environment = json.loads((run / "denoiser" / "environment.json").read_text())
    best = load_state(run / "denoiser" / "best.pt") or {}
    vocoder_steps = (load_state(recipe.vocoder_folder / "state.pt") or {}).get("step", 0)
    dev = f"{best['dev']:.4f}" if "dev" in best else "not measured"
    distillation = ""
    if pipe.distilled_guidance_range:
        low, high = pipe.distilled_guidance_range
        distilled = load_state(run / "distil" / "best.pt") or {}
        distillation = (
            f"\n- Guidance of weight {low:g} to {high:g} learned by the denoiser itself in"
            f" {distilled.get('step', '?')} steps more;\n  mean squared distance to guidance in two passes"
            f" at the default weight: {distilled.get('dev', math.nan):.4f} on the same grid."
        )
    discriminators = "without discriminators"
    if v.adversarial_from < vocoder_steps:
        last = " on" if v.finetune_adversarial else f" to {v.steps}"
        discriminators = f"with discriminators from step {v.adversarial_from}{last}"
    vocoder = (
        f"{vocoder_steps} steps of batch {v.batch_size}, {discriminators};\n"
        f"  the last {max(0, vocoder_steps - v.steps)} on mels of the denoiser"
        if vocoder_steps
        else f"{type(pipe.vocoder).__name__}, that of the bundle {recipe.vocoder_run}"
    )
    licences = Counter((line["source"], line["licence"]) for line in lines)
    table = "\n".join(f"| {source} | {licence} | {n} |" for (source, licence), n in sorted(licences.items()))
    hours = sum(line["duration_s"] for line in lines) / 3600
    sizes = ", ".join(
        f"{name} {sum(p.numel() for p in getattr(pipe, name).parameters()) / 1e6:.2f} M parameters"
        for name in ("condition_encoder", "denoiser", "vocoder")
    )
    inputs = {
        "image": "frames; no label, no text",
        "text": "captions (the CLIPSynth-Text variant)",
        "hybrid": "frames and captions (the CLIPSynth-Hybrid variant)",
    }
    first, last_t = m.guidance_interval
    limits = f"{m.min_duration_s:g} to {m.max_duration_s:g} s"
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items())
    return f"""# Model card: {m.name}

Text- and image-to-audio, {m.sample_rate / 1000:g} kHz mono, {limits}.
A bundle of CLIPSynth, a diffusers pipeline folder. Defaults: {m.num_inference_steps} steps, guidance
{m.guidance_scale:g} on t in [{first:g}, {last_t:g}), time shift {m.time_shift:g}.

## Training

- Conditions: {inputs[d.condition]}.
- Command: `clipsynth {" ".join(environment["command"])}`,
  at git commit {environment["git_commit"] or "unknown"}.
- Denoiser: {best.get("step", "?")} steps of batch {d.batch_size}; flow loss on `dev` clips: {dev},
  at a fixed grid of times and noises.{distillation}
- Vocoder: {vocoder}.
- Parts: {type(pipe.encoder).__name__}, not trained; {sizes}.
- Device: {environment["device"]}; {packages}.

## Data

{len(lines)} training clips, {hours:.2f} hours, listed in `index.jsonl`; the bundle does not contain them.

| source | licence | clips |
|---|---|---:|
{table}

## Evaluation

{results.read_text().strip() if results else "Not measured."}

## Limits

The model knows only the kinds of sound in its training clips. Other prompts give the nearest kind, or noise.
If a source's licence is not stated, use the weights only for research and development.
"""
