"""Write a prepared folder of a few kinds: each a pitch, and a place among the embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from models.audio.mel import MelSpectrogram
from tests.support.shards import write_shard
from training.recipe import Recipe, SpecVqganRecipe, load_recipe

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo.yaml"

RATE, KINDS, DIM = 16000, 6, 16


def planted_clip(kind: int, image: int, dim: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the arrays of a clip of one second that sounds like `kind` and looks like `image`."""
    hz = 200 * 1.5**kind * 2 ** rng.uniform(-0.1, 0.1)
    sound = 0.3 * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE) + 0.02 * rng.standard_normal(RATE)
    place = np.random.default_rng(image).standard_normal(dim) + 0.3 * rng.standard_normal((2, dim))
    mel = MelSpectrogram()(torch.from_numpy(sound)[None].float())[0]
    return {
        "waveform": (sound * 32767).astype(np.int16),
        "mel": mel.half().numpy(),
        "embeds": (place / np.linalg.norm(place, axis=1, keepdims=True)).astype(np.float16),
    }


def write_planted(
    folder: Path,
    *,
    clips: int = 120,
    dev: int = 12,
    matching: bool = True,
    dim: int = DIM,
    seed: int = 0,
    bad: int | None = None,
) -> Path:
    """Write the folder; the last `dev` clips are the dev set.

    Without `matching` a clip's image is independent of its sound. Clip `bad` has an embedding with a NaN.
    """
    rng = np.random.default_rng(seed)
    (folder / "shards").mkdir(parents=True)
    (folder / "encoder").mkdir()
    (folder / "encoder" / "config.json").write_text('{"_class_name": "PackagedEncoder"}')
    rows = []
    for n in range(clips + dev):
        kind, other = rng.integers(KINDS, size=2)
        arrays = planted_clip(int(kind), int(kind if matching else other), dim, rng)
        if n == bad:
            arrays["embeds"][0, 0] = np.nan
        rows.append((f"{n:012d}", {"video": f"{n}.mp4", "kind": int(kind)}, arrays))
    shards = {"000000.tar": rows[::2], "000001.tar": rows[1::2]}
    places = {}
    for name, part in shards.items():
        offsets = write_shard(folder / "shards" / name, part)
        places |= {key: {"shard": name, "arrays": offsets[key]} for key, _, _ in part}
    lines = [
        {
            "key": key,
            "start_s": 0.0,
            "duration_s": 1.0,
            "gain": 1.0 + n,
            "attributes": {"kind": known["kind"]},
            "dev": n >= clips,
        }
        | {"video": known["video"]}
        | places[key]
        for n, (key, known, _) in enumerate(rows)
    ]
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mels = torch.cat([torch.from_numpy(arrays["mel"]).float() for _, _, arrays in rows[:clips]])
    embeds = torch.cat([torch.from_numpy(arrays["embeds"]).float() for _, _, arrays in rows[:clips]])
    statistics = {"mel_mean": mels.mean(0), "mel_std": mels.std(0), "image_mean": embeds.nanmean(0)}
    save_file(
        statistics | {"text_mean": torch.zeros(dim), "gain": torch.ones(())},
        folder / "statistics.safetensors",
    )
    return folder


def planted_recipe(folder: Path, run: Path, *overrides: str) -> Recipe | SpecVqganRecipe:
    """Return a recipe of tiny networks for a planted folder; it needs no text encoder."""
    tiny = ("dim=32", "depth=1", "heads=2", "batch_size=4", "max_frames=100", "scalars=[]", "steps=9")
    return load_recipe(
        DEMO,
        [
            f"clips={folder}",
            f"run={run}",
            "in_memory=false",
            "text_templates=false",
            "anchor_share=0",
            "bank_share=0",
            "distil.steps=2",
            "vocoder.architecture=hifigan",
            "vocoder.batch_size=2",
            "vocoder.segment_frames=20",
            "vocoder.upsample_initial_channel=32",
            *(f"denoiser.{setting}" for setting in tiny),
            *overrides,
        ],
    )
