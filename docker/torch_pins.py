"""Print the pins of PyTorch's layer: `python docker/torch_pins.py constraints.txt`.

An image installs PyTorch by these alone and first, so that a new version of another package does not install
PyTorch again. CUDA's libraries are not included: PyTorch names their versions itself.
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
