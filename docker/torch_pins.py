"""Print those lines of constraints.txt that PyTorch's layer installs by: `python docker/torch_pins.py constraints.txt`.

An image installs PyTorch by these alone, before all else, so that another version of anything else does not install PyTorch again. Libraries of
CUDA are not among them: PyTorch names their versions itself.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# PyTorch, torchvision and what they require.
NAMES = {"torch", "torchvision", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx"}
NAMES |= {"numpy", "pillow", "sympy", "typing-extensions"}


def canonical(name: str) -> str:
    """Return a name as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(constraints: str) -> list[str]:
    """Return the lines of `NAMES`, sorted, so that the order in constraints.txt does not count."""
    lines = [line.strip() for line in constraints.splitlines()]
    return sorted(line for line in lines if canonical(line.partition("==")[0]) in NAMES)


if __name__ == "__main__":
    sys.stdout.write("\n".join(pins(Path(sys.argv[1]).read_text())) + "\n")
