"""Print the requirements of roles: `python docker/requirements.py pyproject.toml app s3`.

Images install this before any source is copied, so that a changed line of code does not install torch again.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_OURS = re.compile(r"clipsynth\[([a-z0-9,]+)\]")


def requirements(project: dict, roles: list[str]) -> list[str]:
    """Return the contract's requirements and those of the roles; a role that names others brings theirs."""
    found = list(project["dependencies"])
    left = list(roles)
    while left:
        for requirement in project["optional-dependencies"][left.pop(0)]:
            ours = _OURS.fullmatch(requirement)
            if ours:
                left += ours[1].split(",")
            else:
                found.append(requirement)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
    sys.stdout.write("\n".join(requirements(project, sys.argv[2:])) + "\n")
