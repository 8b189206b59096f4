"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def start_child(
    command: list[str], environment: Mapping[str, str] | None = None, *, keep_open: Collection[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a child in its own session (a terminal's Ctrl+C reaches the parent alone); on Linux it ends when the parent dies.

    Args:
        keep_open: file descriptors that it inherits.
    """
    return subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        stdout=2,  # what it says is a log; a command's own output stays clean
        pass_fds=tuple(keep_open),
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


def let_threads_sleep() -> None:
    """Have OpenMP's threads sleep at barriers; to be called before torch loads.

    Spinning ones starve each other as soon as another process wants a core.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def wait_until(condition: Callable[[], bool], *, timeout_s: float, interval_s: float = 0.05) -> bool:
    """Poll `condition` until it holds; return whether it did in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True
