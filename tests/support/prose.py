"""Count words that outsiders stumble over, long lines and long names: `python -m tests.support.prose`."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ODD = re.compile(
    r"\b(told|tells? of|nobody|whoever|anew|at hand|for ever|sees? to|seen to|the like|is to be|those that"
    r"|of which|in the place of|wherefore|whereof|goes on|that is lost)\b|[.,;:] [Ww]hat is "
)
LONGEST_LINE, LONGEST_SUMMARY, LONGEST_TEST_NAME = 110, 100, 60
GENERATED = ("docs/licences.md", "tests/support/prose.py")  # a table of packages; the list of words itself


def tracked(*endings: str) -> list[Path]:
    """Return the files of the repository with one of these endings."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return [
        ROOT / name
        for name in names.stdout.splitlines()
        if name.endswith(endings) and name not in GENERATED and (ROOT / name).is_file()
    ]


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of a Python file, each with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments of a Python file, each with its line; a block of comment lines is one."""
    block: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != last + 1:
                yield start, " ".join(block)
                block = []
            start = start if block else token.start[0]
            block.append(token.string.lstrip("# "))
            last = token.start[0]
    if block:
        yield start, " ".join(block)


def prose() -> Iterator[tuple[Path, int, str]]:
    """Yield every docstring, comment and page of docs, with its place."""
    for path in tracked(".py"):
        for line, text in (*docstrings(path), *comments(path)):
            yield path, line, " ".join(text.split())
    for path in tracked(".md"):
        # A figure or a command is no sentence.
        text = re.sub(r"```.*?```|`[^`\n]*`", lambda m: "\n" * m[0].count("\n"), path.read_text(), flags=re.S)
        for n, line_text in enumerate(text.splitlines(), 1):
            yield path, n, line_text


def odd_words() -> tuple[int, list[str]]:
    """Return the number of words of prose, and each place of an odd word."""
    words, places = 0, []
    for path, line, text in prose():
        words += len(text.split())
        for match in ODD.finditer(text):
            shown = text[max(0, match.start() - 30) : match.end() + 30]
            places.append(f"{path.relative_to(ROOT)}:{line}: …{shown}…")
    return words, places


def long_lines() -> list[str]:
    """Return the places of lines of Python above the limit."""
    return [
        f"{path.relative_to(ROOT)}:{n}"
        for path in tracked(".py")
        for n, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > LONGEST_LINE
    ]


def long_summaries() -> list[str]:
    """Return the places of docstrings whose first line is above the limit."""
    return [
        f"{path.relative_to(ROOT)}:{line}"
        for path in tracked(".py")
        for line, text in docstrings(path)
        if len(text.splitlines()[0]) > LONGEST_SUMMARY
    ]


def test_names() -> list[str]:
    """Return the names of all tests."""
    return re.findall(
        r"^\s*(?:async )?def (test_\w+)", "\n".join(p.read_text() for p in tracked(".py")), re.M
    )


def long_test_names() -> list[str]:
    """Return the names of tests above the limit."""
    return [name for name in test_names() if len(name) > LONGEST_TEST_NAME]


def folders() -> dict[str, int]:
    """Return the number of Python files a folder outside tests, `__init__.py` not counted."""
    counts: dict[str, int] = {}
    for path in tracked(".py"):
        folder = str(path.parent.relative_to(ROOT))
        if path.name != "__init__.py" and not folder.startswith("tests"):
            counts[folder] = counts.get(folder, 0) + 1
    return counts


def line_counts() -> dict[str, int]:
    """Return the lines of Python a top-level folder."""
    counts: dict[str, int] = {}
    for path in tracked(".py"):
        top = path.relative_to(ROOT).parts[0]
        counts[top] = counts.get(top, 0) + len(path.read_text().splitlines())
    return counts


def main() -> None:
    words, places = odd_words()
    if "--places" in sys.argv:
        print(*places, *long_lines(), *long_summaries(), *long_test_names(), sep="\n")
    lines = line_counts()
    packages = sum(
        lines.get(name, 0) for name in ("app", "worker", "models", "clipsynth", "training", "evaluation")
    )
    print(f"odd words: {len(places)} in {words} words, {1e4 * len(places) / words:.1f} in 10,000")
    print(f"lines above {LONGEST_LINE} columns: {len(long_lines())}")
    print(f"docstrings with a first line above {LONGEST_SUMMARY}: {len(long_summaries())}")
    print(f"test names above {LONGEST_TEST_NAME}: {len(long_test_names())} of {len(test_names())}")
    print(f"largest folder: {max(folders().items(), key=lambda item: item[1])}")
    print(f"lines: six packages {packages}, {lines}")


if __name__ == "__main__":
    main()
