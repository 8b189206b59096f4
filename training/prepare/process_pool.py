"""Run a function on many inputs in processes or on Ray; an input that kills its process is named."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, cast

ATTEMPTS = 2  # the system may kill a process for the memory of another

# make(*arguments): the function that a process calls with each input.
Make = Callable[..., Callable[[Any], Any]]


@dataclass(frozen=True)
class Died:
    """The process of an input ended; `reason` in words."""

    reason: str


@dataclass(frozen=True)
class Question:
    """What a process asks of the caller."""

    value: Any


def run_in_processes(
    make: Make,
    arguments: tuple[Any, ...],
    inputs: Sequence[Any],
    workers: int,
    answer: Callable[[list[Any]], list[Any]] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Yield (input, result) as they end, of the function `make(*arguments)` that each process makes.

    Args:
        answer: answers the questions of several processes at once; `make` then gets a function that asks.

    Raises:
        RuntimeError: a process ended before it took an input.
    """
    waiting = [(item, 1) for item in reversed(inputs)]
    processes: dict[Connection, SpawnProcess] = {}
    # What each process works on; None while it starts.
    running: dict[Connection, tuple[Any, int] | None] = {}
    try:
        while waiting or running:
            while len(running) < workers and len(running) < len(waiting) + len(running):
                connection = _start(make, arguments, processes, answer is not None)
                running[connection] = None
            questions: dict[Connection, Any] = {}
            for ready in wait(list(running)):
                connection = cast(Connection, ready)
                task = running.pop(connection)
                try:
                    result = connection.recv()
                except (EOFError, ConnectionError):
                    code = _end(connection, processes)
                    if task is None:
                        raise RuntimeError(f"a process ended at its start, exit code {code}") from None
                    if task[1] < ATTEMPTS:
                        waiting.append((task[0], task[1] + 1))
                        continue
                    result = Died(f"it ends the process that prepares it, exit code {code}")
                else:
                    if isinstance(result, Question):
                        running[connection], questions[connection] = task, result.value
                        continue
                    if waiting:
                        running[connection] = following = waiting.pop()
                        connection.send(following[0])
                    else:
                        _end(connection, processes)
                if task is not None:
                    yield task[0], result
            if questions and answer:
                for connection, value in zip(questions, answer(list(questions.values())), strict=True):
                    # A process that has died shows itself at its next turn.
                    with contextlib.suppress(ConnectionError):
                        connection.send(value)
    finally:
        for connection in list(processes):
            processes[connection].terminate()
            _end(connection, processes)


def _start(
    make: Make, arguments: tuple[Any, ...], processes: dict[Connection, SpawnProcess], asks: bool
) -> Connection:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, make, arguments, asks), daemon=True)
    process.start()
    theirs.close()
    processes[ours] = process
    return ours


def _end(connection: Connection, processes: dict[Connection, SpawnProcess]) -> int | None:
    """Wait for the end of a process, which sees its connection closed."""
    connection.close()
    process = processes.pop(connection)
    process.join()
    return process.exitcode


def _ask(connection: Connection, value: Any) -> Any:
    connection.send(Question(value))
    return connection.recv()


def _work(connection: Connection, make: Make, arguments: tuple[Any, ...], asks: bool) -> None:
    """Send None when ready, then a result for each input, until the connection is closed."""
    # The terminal's Ctrl-C is for the caller.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    function = make(*arguments, *([partial(_ask, connection)] if asks else []))
    connection.send(None)
    with contextlib.suppress(EOFError):
        while True:
            connection.send(function(connection.recv()))


def run_on_ray(make: Make, arguments: tuple[Any, ...], inputs: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield (input, result) as they end, on the cluster of `RAY_ADDRESS`, else on this machine.

    An input whose node dies runs on another one.
    """
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
    task = ray.remote(num_cpus=1, max_retries=ATTEMPTS)(_call_cached)
    waiting = list(reversed(inputs))
    running: dict[Any, Any] = {}
    try:
        while waiting or running:
            # Twice as many as fit, so that no processor waits; the cluster may grow.
            while waiting and len(running) < 2 * max(1, int(ray.cluster_resources().get("CPU", 1))):
                item = waiting.pop()
                running[task.remote(make, arguments, item)] = item
            (ready, *_), _ = ray.wait(list(running))
            item = running.pop(ready)
            try:
                yield item, ray.get(ready)
            except ray.exceptions.RayError as error:
                yield item, Died(f"it ends the process that prepares it ({type(error).__name__})")
    finally:
        if started:
            ray.shutdown()


_functions: dict[bytes, Callable[[Any], Any]] = {}


def _call_cached(make: Make, arguments: tuple[Any, ...], item: Any) -> Any:
    """Call the function of these arguments, which is made once a process."""
    key = pickle.dumps((make, arguments))
    if key not in _functions:
        _functions[key] = make(*arguments)
    return _functions[key](item)
