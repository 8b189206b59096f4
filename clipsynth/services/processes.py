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
    """Start a child process in its own session; on Linux it ends when the parent dies.

    A terminal's Ctrl+C reaches only the parent.

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
    """Make OpenMP's threads sleep at barriers; call it before torch loads.

    Spinning threads take the cores from each other when another process needs one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def wait_until(condition: Callable[[], bool], *, timeout_s: float, interval_s: float = 0.05) -> bool:
    """Poll `condition` until it holds; return whether it did within the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True
