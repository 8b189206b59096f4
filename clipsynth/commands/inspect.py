"""`clipsynth inspect BUNDLE` and `clipsynth models`: describe a bundle, and the models of a service."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer


def inspect(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder; the demo's by default.")] = None,
) -> None:
    """Check a bundle and print its parts, sizes, mel, limits and the path of its card."""
    from safetensors import safe_open

    from clipsynth.settings import Settings
    from models.bundle import Manifest

    folder = bundle or Settings().model
    manifest = Manifest.read(folder)
    print(f"{manifest.name}  version {manifest.version}  format {manifest.format_version}  {folder}")
    print(
        f"sounds    {manifest.min_duration_s:g} to {manifest.max_duration_s:g} s, {manifest.sample_rate} Hz; "
        f"by default {manifest.duration_s:g} s, {manifest.num_inference_steps} steps, "
        f"guidance {manifest.guidance_scale:g}"
    )
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        parameters = 0
        for file in part.rglob("*.safetensors"):
            with safe_open(file, "np") as tensors:
                shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
            parameters += sum(map(math.prod, shapes))
        counted = f"{parameters / 1e6:.2f} M parameters" if parameters else "settings only"
        print(f"{part.name:<18}{size / 1e6:8.2f} MB  {counted}")
    mel = json.loads((folder / "mel" / "config.json").read_text())
    print("mel       " + ", ".join(f"{k} {v}" for k, v in mel.items() if not k.startswith("_")))
    index = folder / "index.jsonl"
    print(f"index     {len(index.read_text().splitlines()) if index.is_file() else 0} training clips")
    card = folder / "README.md"
    print(f"card      {card if card.is_file() else 'none'}")


def models(
    server: Annotated[str, typer.Option(help="URL of the service.")] = "http://localhost:8000",
    api_key: Annotated[str | None, typer.Option(envvar="CLIPSYNTH_API_KEY")] = None,
) -> None:
    """Print the models of a service."""
    from clipsynth.client.client import Client

    with Client(server, api_key=api_key, patience_s=0) as client:
        for model in client.models():
            limits = f"{model.min_duration_s:g} to {model.max_duration_s:g} s at {model.sample_rate} Hz"
            print(model.name, model.status, model.version, limits, sep="  ")
