"""Record which source files of this repository the code enters, to count how far a request travels."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWN = tuple(f"{ROOT / name}/" for name in ("app", "worker", "models", "clipsynth"))
RESUMABLE = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class CallPath:
    """Calls of own functions in the order in which they began, as (file, function), over all threads."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._ended: dict[tuple[str, str], int] = {}
        self._suspended: list[object] = []  # keeps frames alive, so that a resumed one is known

    @property
    def files(self) -> set[str]:
        """Return the files whose functions were called."""
        return {file for file, _ in self.calls}

    def changes(self, function: tuple[str, str]) -> int:
        """Count the calls inside `function` that enter another file than the call before."""
        calls = self.calls[self.calls.index(function) : self._ended[function]]
        return sum(before[0] != after[0] for before, after in pairwise(calls))

    def clear(self) -> None:
        """Forget what was recorded."""
        self.calls.clear()

    def profile(self, frame, event, _):
        """Take an event of `sys.setprofile`."""
        code = frame.f_code
        # A comprehension or a lambda is part of the function that holds it; a module's body runs once.
        if not code.co_filename.startswith(OWN) or code.co_name.startswith("<"):
            return
        call = str(Path(code.co_filename).relative_to(ROOT)), code.co_name
        if event == "return":
            self._ended[call] = len(self.calls)
        elif event == "call" and not any(frame is seen for seen in self._suspended):
            self.calls.append(call)
            if code.co_flags & RESUMABLE:
                self._suspended.append(frame)


@contextmanager
def record_calls() -> Iterator[CallPath]:
    """Record calls in this thread and in threads that start meanwhile."""
    path = CallPath()
    threading.setprofile(path.profile)
    sys.setprofile(path.profile)
    try:
        yield path
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
