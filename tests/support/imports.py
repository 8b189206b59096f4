"""Read who imports whom, and find circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.prose import ROOT

PACKAGES = ("app", "worker", "models", "clipsynth", "training", "evaluation")


def modules() -> dict[str, Path]:
    """Return the files of the six packages by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each import that runs, lazy ones included; those for types alone do not run."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.dump(tree.test):
        return
    if isinstance(tree, ast.Import):
        yield from ((alias.name, "") for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom) and tree.module:
        yield from ((tree.module, alias.name) for alias in tree.names)
    for child in ast.iter_child_nodes(tree):
        yield from imported(child)


def import_graph() -> dict[str, set[str]]:
    """Return the own modules that each own module imports."""
    files = modules()
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        pairs = imported(ast.parse(path.read_text()))
        targets = {full if (full := f"{source}.{name}") in files else source for source, name in pairs}
        graph[module] = targets & files.keys() - {module}
    return graph


def room(module: str) -> str:
    """Return the room of a module: its folder, or the module itself where it lies at a package's root."""
    parent, _, _ = module.rpartition(".")
    return parent if "." in parent else module


def room_graph() -> dict[str, set[str]]:
    """Return the rooms that each room imports."""
    graph: dict[str, set[str]] = {}
    for module, targets in import_graph().items():
        graph.setdefault(room(module), set()).update(room(t) for t in targets if room(t) != room(module))
    return graph


def find_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the nodes of one circle in order, or nothing."""
    done: set[str] = set()

    def follow(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if circle := follow(target, [*way, node]):
                return circle
        done.add(node)
        return []

    return next((circle for node in sorted(graph) if (circle := follow(node, []))), [])
