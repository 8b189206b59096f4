"""The other side of clipsynth/services/limited_process.py: helper, keeper and child process."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import pickle
import resource
import select
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any, NoReturn

LENGTH = struct.Struct(">Q")
# The first byte of an answer.
RESULT, ERROR = b"r", b"e"
# The whole answer of a generator that ended, after a frame with a result for each item.
DONE = b"d"
# An error may be this much longer than a result: the text of an exception.
_ERROR_BYTES = 8192


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one call.

    Attributes:
        cpu_s: CPU time of all threads of the child, rounded up to whole seconds.
        wall_s: time from the whole request to the whole result; of a stream, without the caller's share.
        memory_bytes: address space that the child may add to what the imported modules have.
        output_bytes: size of the pickled result, or of each item of a stream.
        file_bytes: size of each file that the child writes; 0 allows no file with content.
    """

    cpu_s: float
    wall_s: float
    memory_bytes: int
    output_bytes: int
    file_bytes: int = 0


def frame(data: bytes) -> bytes:
    return LENGTH.pack(len(data)) + data


def receive_frame(connection: socket.socket) -> bytes:
    (size,) = LENGTH.unpack(_receive(connection, LENGTH.size))
    return _receive(connection, size)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def serve(control_fd: int, module: str) -> NoReturn:
    """Fork a keeper for each connection until the caller's process ends. Runs in the helper."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control = socket.socket(fileno=control_fd)
    # A module that cannot be imported is the child's exception.
    with contextlib.suppress(Exception):
        importlib.import_module(module)
    while True:
        _, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not fds:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            with contextlib.suppress(OSError, EOFError):
                _keep(socket.socket(fileno=fds[0]))
            os._exit(0)
        os.close(fds[0])


def _keep(connection: socket.socket) -> None:
    """Run one call in a child and send its result or the limit that it reached. Runs in the keeper."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header = json.loads(receive_frame(connection))
    stream, limits = header.pop("stream"), Limits(**header)
    call = receive_frame(connection)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        connection.close()
        os.close(ours)
        _run_child(call, limits, theirs, stream)
    os.close(theirs)
    output = bytearray()
    try:
        reached = _collect(connection, ours, output, limits, stream)
    finally:
        # A child that ended keeps its exit status. Its session, too: nothing that it started stays.
        for kill in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    reached = reached or _reached(status, output[:1] in (RESULT, ERROR, DONE), limits)
    connection.sendall(frame(ERROR + json.dumps(reached).encode() if reached else bytes(output)))


def _collect(
    connection: socket.socket, pipe: int, output: bytearray, limits: Limits, stream: bool
) -> tuple[str, str] | None:
    """Read the child's output to its end, send a stream's items, return the limit that it reached.

    Raises:
        EOFError: the caller has gone.
    """
    deadline = time.monotonic() + limits.wall_s
    while True:
        ready, _, _ = select.select(
            [connection.fileno(), pipe], [], [], max(0.0, deadline - time.monotonic())
        )
        if not ready:
            return "WallTimeExceeded", f"it took longer than {limits.wall_s:g} s"
        if connection.fileno() in ready:
            raise EOFError
        part = os.read(pipe, 1 << 16)
        if not part:
            return None
        output += part
        largest = limits.output_bytes + (_ERROR_BYTES if output[:1] == ERROR else 1)
        if stream:
            # The caller may take its time.
            began = time.monotonic()
            largest += LENGTH.size
            _send_items(connection, output, largest)
            deadline += time.monotonic() - began
        if len(output) > largest:
            return "OutputTooLarge", f"the result is larger than {limits.output_bytes} bytes"


def _send_items(connection: socket.socket, output: bytearray, largest: int) -> None:
    """Send the whole frames of allowed size at the start of the output, and remove them from it."""
    # A length starts with a zero byte, an answer does not.
    while output[:1] == b"\0" and len(output) >= LENGTH.size:
        end = LENGTH.size + LENGTH.unpack(output[: LENGTH.size])[0]
        if end > min(len(output), largest):
            break
        connection.sendall(output[:end])
        del output[:end]


def _reached(status: int, is_answer: bool, limits: Limits) -> tuple[str, str] | None:
    """Return how a child ended that has no answer: the limit, or a crash."""
    if not os.WIFSIGNALED(status):
        code = os.WEXITSTATUS(status)
        return None if is_answer and code == 0 else ("ChildCrashed", f"it ended with exit code {code}")
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU:
        return "CpuExceeded", f"it took {math.ceil(limits.cpu_s)} s of CPU time"
    if number == signal.SIGXFSZ:
        return "OutputTooLarge", f"it wrote a file larger than {limits.file_bytes} bytes"
    return "ChildCrashed", f"signal {number} ended it"


def _run_child(call: bytes, limits: Limits, pipe: int, stream: bool) -> NoReturn:
    try:
        _limit_self(limits)
        # The call comes from the process that forked this one.
        module, name, args = pickle.loads(call)  # noqa: S301
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
        if stream:
            for item in target(*args):
                # The keeper may wait for the caller.
                signal.setitimer(signal.ITIMER_REAL, 0)
                _write(pipe, frame(RESULT + pickle.dumps(item, protocol=5)))
                signal.setitimer(signal.ITIMER_REAL, limits.wall_s + 1)
            answer = DONE
        else:
            answer = RESULT + pickle.dumps(target(*args), protocol=5)
    except (MemoryError, BlockingIOError):
        # Without memory for its stack a thread of a library cannot start.
        answer = ERROR + b'["MemoryExceeded", "it ran out of memory"]'
    except BaseException as error:
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        answer = ERROR + json.dumps(["ChildRaised", kind, str(error)[:1000]]).encode()
    try:
        _write(pipe, answer)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _write(pipe: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]


def _limit_self(limits: Limits) -> None:
    os.setsid()
    for number in (signal.SIGXFSZ, signal.SIGPIPE, signal.SIGALRM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    # The system's OOM killer takes this process first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # If the keeper dies.
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s + 1)
    cpu = math.ceil(limits.cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    with contextlib.suppress(OSError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + limits.memory_bytes,) * 2)
