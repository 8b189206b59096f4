"""What images install before any source is there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def wanted(*roles):
    command = [sys.executable, "docker/requirements.py", "pyproject.toml", *roles]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name(line): line for line in lines}


def name(requirement):
    """As PEP 503 has names."""
    return re.sub(r"[-_.]+", "-", re.split("[<>=]", requirement)[0]).lower()


def test_the_api_has_no_torch():
    assert {"fastapi", "rq", "prometheus-client"} <= wanted("app").keys()
    assert not {"torch", "numpy", "soundfile", "transformers"} & wanted("app").keys()


def test_training_requires_what_a_worker_requires():
    assert wanted("worker").items() <= wanted("train").items()
    assert "av" in wanted("train")


def test_an_extra_adds_to_a_role():
    assert wanted("app", "s3").keys() - wanted("app").keys() == {"s3fs"}


@pytest.mark.parametrize("role", ["app", "worker", "train"])
def test_every_requirement_is_pinned(role):
    pinned = {name(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert wanted(role, "s3").keys() <= pinned


@pytest.mark.parametrize(
    ("lock", "roles"),
    [("app", ["app"]), ("s3", ["app", "s3"]), ("worker", ["worker"]), ("train", ["train"])],
)
def test_the_locks_hold_the_pins_with_hashes(lock, roles):
    text = (ROOT / f"docker/{lock}.lock").read_text().replace("\\\n", "")
    locked = {name(line): line for line in text.splitlines()}
    assert wanted(*roles).keys() - {"torch", "torchvision"} <= locked.keys()
    assert not [each for each in locked if each.startswith(("torch", "nvidia", "cuda", "triton"))]
    pinned = {name(line): line for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for each, line in locked.items():
        assert line.split()[0].partition("==")[2] == pinned[each].partition("==")[2]
        assert "--hash=sha256:" in line, each


CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()


def torch_pins(lines, folder):
    (folder / "constraints.txt").write_text("\n".join(lines))
    command = [sys.executable, "docker/torch_pins.py", folder / "constraints.txt"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def required(*roots):
    """The names of packages and of what they require, extras left out."""
    found, left = set(), list(roots)
    while left:
        package = left.pop()
        if package not in found:
            found.add(package)
            needs = map(Requirement, requires(package) or ())
            left += [name(n.name) for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return found


def test_torch_pins_cover_the_requirements_of_torch(tmp_path):
    printed = torch_pins(CONSTRAINTS, tmp_path).split()
    pinned = {name(line) for line in CONSTRAINTS}
    assert {name(line) for line in printed} == required("torch", "torchvision") & pinned
    assert set(printed) <= set(CONSTRAINTS)


def test_torch_pins_change_only_with_the_pins_of_torch(tmp_path):
    """The layer is made anew when what is printed changes."""
    before = torch_pins(CONSTRAINTS, tmp_path)
    others = [line if line in before.split() else line + ".1" for line in CONSTRAINTS]
    assert torch_pins([*others[::-1], "another==1"], tmp_path) == before
    assert torch_pins([line.replace("torch==", "torch==9") for line in CONSTRAINTS], tmp_path) != before


def imports_of(file):
    """The top-level names that a module of ours imports when it is loaded itself."""
    for node in ast.parse(Path(file).read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


MODULES = {"app": "app.main", "worker": "worker.main, worker.predictor"}


@pytest.mark.slow
@pytest.mark.parametrize("role", MODULES)
def test_a_role_requires_what_it_imports(role):
    loaded_files = "{getattr(m, '__file__', None) for m in list(sys.modules.values())}"
    code = f"import sys, {MODULES[role]}; print(*{loaded_files})"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ours = [f for f in loaded if f.startswith(str(ROOT)) and "site-packages" not in Path(f).parts]
    packages = packages_distributions()
    imported = {name(packages[module][0]) for f in ours for module in imports_of(f) if module in packages}
    assert "pydantic" in imported
    assert imported - required(*wanted(role)) <= {"clipsynth"}
