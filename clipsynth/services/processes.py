"""Child processes that do not outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from clipsynth.errors import ServeError

_PR_SET_PDEATHSIG = 1
BACKLOG = 2048
LAST_BYTES = 10_000


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage while modules are imported, and leave them out of later collections."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def start_child(
    command: list[str],
    environment: Mapping[str, str] | None = None,
    *,
    keep_open: Collection[int] = (),
    log: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child process in its own session; on Linux it ends when the parent dies.

    A terminal's Ctrl+C reaches only the parent.

    Args:
        keep_open: file descriptors that it inherits.
        log: file to which its output is appended; stderr by default, so that a command's own output stays
            clean.
    """
    with log.open("ab") if log else contextlib.nullcontext(2) as output:
        return subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            stdout=output,
            stderr=output if log else None,
            pass_fds=tuple(keep_open),
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def last_line(log: Path) -> str:
    """Return the last line of a log; empty without one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_BYTES))
            return file.read().decode(errors="replace").strip().rpartition("\n")[2]
    except OSError:
        return ""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 chooses a free one.

    Raises:
        ServeError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)
    except OSError as error:
        other = "; choose another port with --port" if error.errno == errno.EADDRINUSE else ""
        reason = str(error.strerror).partition(" (while")[0]
        raise ServeError(f"cannot listen on {host}, port {port}: {reason}{other}") from error


def keep_files_private() -> None:
    """Let only this user read the files that the process and its children make."""
    os.umask(0o077)


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
