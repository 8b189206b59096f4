"""Run a function in a child process with limits of CPU, time, memory and output.

For work on bytes that others wrote: images, videos. A helper process per module of such functions imports
that module once (with its decoders) and has one thread. For each call it forks a keeper, which forks the
child. The keeper enforces the limits. It kills and reaps the child when the caller closes the connection, so
a cancelled or killed caller leaves no process. A call takes a few milliseconds more than the function.

Linux and macOS; the memory limit needs Linux. Environment variables do not reach the child, except a few.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import enum
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar, cast

from clipsynth.limited_child import DONE, LENGTH, RESULT, Limits, frame, receive_frame

T = TypeVar("T")
_PASSED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "TZ")
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_NUMPY = {"numpy", "numpy._core.multiarray", "numpy.core.multiarray", "numpy._core.numeric"}
_NUMPY_NAMES = {"ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer"}


class ChildError(Exception):
    """The function returned no result."""


class CpuExceeded(ChildError):
    """The child was killed at its limit of CPU time."""


class WallTimeExceeded(ChildError):
    """The child was killed at its limit of time."""


class MemoryExceeded(ChildError):
    """The child reached its limit of memory."""


class OutputTooLarge(ChildError):
    """The result, or a file that the child wrote, reached its limit."""


class ChildCrashed(ChildError):
    """A signal or a bug ended the child, or the system killed it."""


class ChildRaised(ChildError):
    """The function raised an exception.

    Attributes:
        kind: module and name of its class, such as "builtins.ValueError".
        detail: its text.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


_ERRORS = {error.__name__: error for error in ChildError.__subclasses__()}


def run_limited(function: Callable[..., T], *args: Any, limits: Limits) -> T:
    """Run a function in a child process and return its result.

    The result consists of plain data, NumPy arrays, and data classes and enums of the function's package.
    Other classes are refused, because a hostile input may have taken over the child.

    Args:
        function: a function of a module; a module that runs as `__main__` has none.
        args: anything that pickles.

    Raises:
        ChildError: its class says which limit was reached or how the function ended.
    """
    helper = _helper(function.__module__)
    with helper.connect() as connection:
        try:
            connection.sendall(_request(function, args, limits))
            return cast(T, _result(function, receive_frame(connection)))
        except (EOFError, ConnectionError):
            raise ChildCrashed("the keeper of the child ended") from None


async def run_limited_async(function: Callable[..., T], *args: Any, limits: Limits) -> T:
    """Run a function as `run_limited` does, without a thread. Cancelling kills the child."""
    helper = _helper(function.__module__)
    connection = await asyncio.to_thread(helper.connect)
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection(sock=connection)
        writer.write(await asyncio.to_thread(_request, function, args, limits))
        await writer.drain()
        (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return cast(T, _result(function, await reader.readexactly(size)))
    except (EOFError, ConnectionError):
        raise ChildCrashed("the keeper of the child ended") from None
    finally:
        if writer is None:
            connection.close()
        else:
            # close() would first wait until the rest of the request is sent.
            writer.transport.abort()


def stream_limited(function: Callable[..., Iterator[T]], *args: Any, limits: Limits) -> Iterator[T]:
    """Run a generator in a child process and yield its items, as `run_limited` does with a result.

    The child is about one item ahead. Closing the iterator kills it.
    """
    helper = _helper(function.__module__)
    with helper.connect() as connection:
        try:
            connection.sendall(_request(function, args, limits, stream=True))
            while (answer := receive_frame(connection)) != DONE:
                yield cast(T, _result(function, answer))
        except (EOFError, ConnectionError):
            raise ChildCrashed("the keeper of the child ended") from None


def named(module: str, name: str) -> Callable[..., Any]:
    """Return a stand-in for a function of a module that the caller need not import."""

    def stand_in(*_: Any) -> NoReturn:
        raise NotImplementedError(f"{name} runs in a child process")

    stand_in.__module__, stand_in.__qualname__ = module, name
    return stand_in


def warm_up(function: Callable[..., Any]) -> None:
    """Start the helper process of a function now, so that the first call does not wait for its imports."""
    _helper(function.__module__).connect().close()


def _request(
    function: Callable[..., Any], args: tuple[Any, ...], limits: Limits, stream: bool = False
) -> bytes:
    call = pickle.dumps((function.__module__, function.__qualname__, args))
    return frame(json.dumps({**dataclasses.asdict(limits), "stream": stream}).encode()) + frame(call)


def _result(function: Callable[..., Any], answer: bytes) -> Any:
    if answer[:1] == RESULT:
        return _PlainUnpickler(io.BytesIO(answer[1:]), function.__module__.partition(".")[0]).load()
    name, *details = json.loads(answer[1:])
    raise _ERRORS[name](*details)


class _PlainUnpickler(pickle.Unpickler):
    """Loads plain data, NumPy arrays, and data classes and enums of one package."""

    def __init__(self, file: io.BytesIO, package: str) -> None:
        super().__init__(file)
        self._package = package

    def find_class(self, module: str, name: str) -> Any:
        if module in _NUMPY and name in _NUMPY_NAMES:
            return super().find_class(module, name)
        if module.partition(".")[0] == self._package and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, enum.Enum)):
                return found
        raise ChildCrashed(f"the result holds {module}.{name}")


class _Helper:
    """A process that imports one module and forks a keeper for each connection."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def connect(self) -> socket.socket:
        """Return a connection to a new keeper. Starts the helper if it does not run."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            if self._control is not None:
                # An OSError: the helper has ended.
                with contextlib.suppress(OSError):
                    socket.send_fds(self._control, [b"f"], [theirs.fileno()])
                    return ours
            socket.send_fds(self._start(), [b"f"], [theirs.fileno()])
        return ours

    def _start(self) -> socket.socket:
        self.close()
        self._control, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            "from clipsynth.limited_child import serve\n"
            f"serve({theirs.fileno()}, {self._module!r})"
        )
        kept = {name: os.environ[name] for name in _PASSED if name in os.environ}
        with theirs:
            # A session of its own: the terminal's Ctrl-C is for the caller.
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**kept, **_ONE_THREAD, "MALLOC_ARENA_MAX": "2", "PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
            )
        return self._control

    def close(self) -> None:
        """End the helper. Calls that run go on to their end."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.wait()


_HELPERS: dict[tuple[int, str], _Helper] = {}


def _helper(module: str) -> _Helper:
    # By process id: a forked copy of this process starts its own.
    return _HELPERS.setdefault((os.getpid(), module), _Helper(module))


@atexit.register
def _close_helpers() -> None:
    for (pid, _), helper in _HELPERS.items():
        if pid == os.getpid():
            helper.close()
