"""Functions for a limited child process: each reaches one limit or ends in one way."""

from __future__ import annotations

import enum
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class Shade(enum.Enum):
    DARK = "dark"


@dataclass(frozen=True)
class Found:
    shade: Shade
    levels: np.ndarray


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def double(values: list[int]) -> list[int]:
    return [2 * value for value in values]


def find(data: bytes) -> Found:
    return Found(Shade.DARK, np.frombuffer(data, np.uint8).astype(np.float32))


def spin() -> None:
    while True:
        pass


def sleep(announce: str = "") -> None:
    if announce:
        Path(announce).write_text(str(os.getpid()))
    time.sleep(3600)


def close_and_sleep() -> None:
    os.closerange(3, 100)
    time.sleep(3600)


def sleep_with_child(announce: str) -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"])
    Path(announce).write_text(str(child.pid))
    child.wait()


def allocate(size: int) -> int:
    return len(bytearray(size))


def start_a_thread_too_many() -> None:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def large(size: int) -> bytes:
    return bytes(size)


def write(path: str, size: int) -> None:
    Path(path).write_bytes(bytes(size))


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)


def leave(code: int) -> None:
    os._exit(code)


def refuse(text: str) -> None:
    raise ValueError(text)


def evil() -> Evil:
    return Evil()


def environment() -> dict[str, str]:
    return dict(os.environ)


def write_and_return() -> int:
    os.write(1, b"x" * 100_000)
    os.write(2, b"y" * 100_000)
    return signal.SIGKILL.value


def count(sizes: list[int], announce: str = "") -> Iterator[np.ndarray]:
    """Yield arrays of these sizes; at a negative one sleep, at zero raise an exception."""
    if announce:
        Path(announce).write_text(str(os.getpid()))
    for size in sizes:
        if size < 0:
            time.sleep(3600)
        if size == 0:
            raise ValueError("zero")
        yield np.zeros(size, np.uint8)
