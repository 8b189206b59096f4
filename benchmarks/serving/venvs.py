"""An environment of its own for each foreign server, made from its pinned requirements in the user's cache folder and kept there."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"


def cache_dir() -> Path:
    """Return the folder of the environments."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipsynth" / "benchmarks"


def environment(name: str) -> Path:
    """Return the folder of an environment's programs; make it unless it is there for these very requirements.

    Raises:
        CalledProcessError: pip cannot install them.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    version = hashlib.sha256(sys.version.encode() + requirements.read_bytes()).hexdigest()[:8]
    folder = cache_dir() / f"{name}-{version}"
    if not (folder / "ready").exists():
        print(f"making {folder} …", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--requirement", requirements]
        subprocess.run(pip, check=True)
        (folder / "ready").touch()
    return folder / "bin"


def version(name: str) -> str:
    """Return the pinned version of a package, from the requirements of the same name."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))
