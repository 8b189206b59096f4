"""`clipsynth inspect`, `models` and `doctor`: a bundle, the models of a service, and this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from clipsynth.errors import ClipSynthError

if TYPE_CHECKING:
    from redis import Redis

    from clipsynth.settings import Settings

MIN_FREE_BYTES = 1_000_000_000
ROLES = {"app": "fastapi", "client": "httpx_sse", "worker": "torch", "train": "accelerate"}


class Failure(Exception):
    """A failed check; the message says how to fix it."""


def doctor() -> None:
    """Check whether a service can run here; exit code 1 on a failure.

    Checks Python, packages, Redis, the bundle, the device, the port and the disk.
    """
    from clipsynth.settings import Settings

    settings = Settings()
    failed = 0
    for name, check in CHECKS.items():
        try:
            print(f"ok     {name:<9}{check(settings)}")
        except (Failure, ClipSynthError, ValueError, OSError) as error:
            failed += 1
            print(f"wrong  {name:<9}{error}")
    if failed:
        raise SystemExit(1)


def _python(_: Settings) -> str:
    if not (3, 11) <= sys.version_info < (3, 15):
        raise Failure(f"Python {sys.version.split()[0]}; CLIPSynth needs 3.11 to 3.14")
    return f"{sys.version.split()[0]}, clipsynth {version('clipsynth')}"


def _packages(_: Settings) -> str:
    there = [role for role, package in ROLES.items() if importlib.util.find_spec(package)]
    missing = [role for role in ROLES if role not in there]
    if not {"app", "worker"} <= set(there):
        raise Failure(f"the parts {', '.join(missing)} are not installed; `pip install 'clipsynth[all]'`")
    return f"installed for {', '.join(there)}" + (f"; not for {', '.join(missing)}" if missing else "")


@contextlib.contextmanager
def _answering_redis(settings: Settings) -> Iterator[Redis | None]:
    """Yield a client of the Redis of the settings, or of a running `serve`; None if none answers."""
    from clipsynth.jobs.queue import connect, is_redis_up
    from clipsynth.services.embedded_redis import running_url

    url = settings.redis_url or running_url(settings.data_dir)
    with connect(url) if url else contextlib.nullcontext() as redis:
        yield redis if redis and is_redis_up(redis) else None


def _redis(settings: Settings) -> str:
    from clipsynth.services.embedded_redis import find_redis_server

    with _answering_redis(settings) as redis:
        if redis:
            whose = "" if settings.redis_url else ", that of a running serve"
            return f"{redis.info('server')['redis_version']} answers{whose}"
    if settings.redis_url:
        raise Failure("CLIPSYNTH_REDIS_URL is set, and nothing answers there; start Redis or unset it")
    return f"`clipsynth serve` would start {find_redis_server()}"


def _workers(settings: Settings) -> str:
    from clipsynth.jobs.store import JobStore

    found = []
    with _answering_redis(settings) as redis:
        if not redis:
            return "none"
        state = JobStore.from_settings(redis, settings)
        for model in state.models():
            precisions = state.precisions(model.name)
            if len(precisions) > 1:
                raise Failure(
                    f"those of {model.name} have several precisions ({', '.join(precisions)}), so a seed may "
                    "mean several sounds; set CLIPSYNTH_PRECISION for all of them"
                )
            found.append(f"{model.name} {', '.join([model.status, *precisions])}")
    return "; ".join(found) or "none"


def _bundle(settings: Settings) -> str:
    from models.bundle import Manifest

    manifest = Manifest.read(settings.model)
    return f"{manifest.name} {manifest.version}, all hashes match"


def _device(settings: Settings) -> str:
    import torch

    from models.networks.precision import choose_precision
    from worker.predictor import choose_device

    device, reason = choose_device(settings.device)
    dtype, why = choose_precision(device, settings.precision)
    name = str(dtype).removeprefix("torch.")
    return f"{device} ({reason}), {name} ({why}); torch {torch.__version__}, {os.cpu_count()} cores"


def _port(settings: Settings) -> str:
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            place = f"{settings.host}:{settings.port}"
            raise Failure(
                f"{place} is not free ({error.strerror}); stop its user or set CLIPSYNTH_PORT"
            ) from None
    return f"{settings.host}:{settings.port} is free"


def _disk(settings: Settings) -> str:
    there = next(
        p for p in (settings.data_dir.absolute(), *settings.data_dir.absolute().parents) if p.exists()
    )
    if not os.access(there, os.W_OK):
        raise Failure(f"{settings.data_dir} cannot be written; set CLIPSYNTH_DATA_DIR to a folder of yours")
    free = shutil.disk_usage(there).free
    if free < MIN_FREE_BYTES:
        raise Failure(f"{free / 1e9:.1f} GB free at {Path(there)}; a day of results may take more")
    return f"{free / 1e9:.0f} GB free for {settings.data_dir}"


CHECKS: dict[str, Callable[[Settings], str]] = {
    "python": _python,
    "packages": _packages,
    "redis": _redis,
    "workers": _workers,
    "bundle": _bundle,
    "device": _device,
    "port": _port,
    "disk": _disk,
}


def inspect(
    bundle: Annotated[Path | None, Argument(help="Bundle folder; the demo's by default.")] = None,
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
    server: Annotated[str, Option(help="URL of the service.")] = "http://localhost:8000",
    api_key: Annotated[str | None, Option(envvar="CLIPSYNTH_API_KEY")] = None,
) -> None:
    """Print the models of a service."""
    from clipsynth.client.client import Client

    with Client(server, api_key=api_key, patience_s=0) as client:
        for model in client.models():
            limits = f"{model.min_duration_s:g} to {model.max_duration_s:g} s at {model.sample_rate} Hz"
            print(model.name, model.status, model.version, limits, sep="  ")
