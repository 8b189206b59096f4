"""The images that docker/check.py needs: built with buildah, without a container engine."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from compose_service import buildah, run
from torch_pins import canonical

ROOT = Path(__file__).resolve().parents[1]
BASE, REDIS = "localhost/clipsynth-base", "localhost/clipsynth-check-redis"
# Without a pin: the contents of a new virtual environment, and libraries whose versions PyTorch names.
FREE = ("pip", "setuptools", "nvidia-", "cuda-", "triton")


def make_base(suite: str) -> None:
    """Make an image of Debian and its Python instead of python:3.11.14-slim-bookworm."""
    with tempfile.TemporaryDirectory() as folder:
        packages = "--include=ca-certificates,python3,python3-venv"
        run("debootstrap", "--variant=minbase", packages, suite, folder)
        for pattern in ("var/lib/apt/lists/*", "var/cache/apt/*", "usr/share/doc/*", "usr/share/man/*"):
            for path in Path(folder).glob(pattern):
                run("rm", "-rf", str(path))
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, folder, "/")
        buildah("commit", "--quiet", "--rm", container, BASE)


def make_redis(mounts: list[str]) -> None:
    """Make an image with Debian's Redis instead of redis:7.2.11-bookworm."""
    container = buildah("from", *volumes(mounts), BASE)
    install = "apt-get update -q && apt-get install -qy --no-install-recommends redis-server"
    install += " && install -d -o 999 /data"
    buildah("run", "--isolation", "chroot", container, "--", "sh", "-c", install)
    buildah("commit", "--quiet", "--rm", container, REDIS)


def volumes(mounts: list[str]) -> list[str]:
    return [word for mount in mounts for word in ("--volume", f"{mount}:{mount}:ro")]


def build(role: str, mounts: list[str]) -> float:
    """Build a role's image, whose build can read `mounts`; return the seconds."""
    started = time.monotonic()
    options = ["--layers", "--format", "docker", *volumes(mounts), "--build-arg", f"BASE={BASE}"]
    options += ["--file", f"docker/{role}.Dockerfile", "--tag", f"clipsynth-{role}"]
    buildah("bud", "--isolation", "chroot", *options, ".", cwd=ROOT)
    return time.monotonic() - started


def sizes() -> dict[str, str]:
    listed = json.loads(buildah("images", "--json"))
    return {name.removeprefix("localhost/"): i["size"] for i in listed for name in i.get("names") or ()}


def unpinned(role: str) -> set[str]:
    """Return the packages in a role's image that constraints.txt does not pin, or not to that version."""
    container = buildah("from", f"clipsynth-{role}")
    freeze = ("/venv/bin/pip", "list", "--format", "freeze", "--exclude", "clipsynth")
    try:
        listed = buildah("run", "--isolation", "chroot", container, "--", *freeze).splitlines()
    finally:
        buildah("rm", container)
    pins = {canonical(line) for line in (ROOT / "constraints.txt").read_text().split()}
    found = {canonical(line).replace("+cpu", "") for line in listed if "==" in line}
    return {line for line in found - pins if not line.startswith(FREE)}
