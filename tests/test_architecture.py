"""The floors, circles and sizes of the code, and what the API's process does not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter

import pytest

from tests.support.imports import PACKAGES, find_circle, import_graph, modules, room_graph
from tests.support.prose import ROOT, folders, tracked

MAY_IMPORT = {
    "app": {"clipsynth"},
    "worker": {"clipsynth", "models"},
    "training": {"models"},
    "evaluation": {"models", "clipsynth"},
    "models": set(),
    "clipsynth": set(),
}
MOST_FILES, MOST_LINES = 9, 350


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_a_higher_floor(package):
    for module, targets in import_graph().items():
        # The command line joins all floors.
        if module.startswith(f"{package}.") and not module.startswith(
            ("clipsynth.cli", "clipsynth.commands")
        ):
            above = {target.partition(".")[0] for target in targets} - {package}
            assert above <= MAY_IMPORT[package], module


@pytest.mark.parametrize("graph", [import_graph, room_graph])
def test_no_file_or_room_is_in_an_import_circle(graph):
    assert find_circle(graph()) == []


def test_a_circle_is_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_every_folder_has_few_files():
    assert {folder: n for folder, n in folders().items() if n > MOST_FILES} == {}


def test_every_file_is_short():
    lines = {path: len(path.read_text().splitlines()) for path in tracked(".py")}
    long = {
        str(p.relative_to(ROOT)): n for p, n in lines.items() if n > MOST_LINES and "tests" not in p.parts
    }
    assert long == {}


def test_no_class_name_stands_for_two_classes():
    names = Counter(
        node.name
        for path in tracked(".py")
        if path.relative_to(ROOT).parts[0] in PACKAGES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, n in names.items() if n > 1] == []


def test_every_room_lists_its_files():
    for module, path in modules().items():
        if path.name == "__init__.py" and "." in module:
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            names = {file.stem for file in path.parent.glob("*.py")} - {"__init__"}
            assert {name for name in names if name not in docstring} == set(), module


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("app.main", ("torch", "numpy", "scipy", "soundfile", "models", "worker")),
        # A worker announces its model before it loads the rest; `serve` describes it without loading it.
        ("worker.main", ("torch", "scipy.signal", "scipy.fft", "diffusers", "transformers")),
        ("models.pipeline", ("scipy.signal",)),
        ("clipsynth.cli", ("pydantic", "redis", "fastapi", "numpy")),
    ],
)
def test_a_module_loads_no_heavy_library(module, heavy):
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
