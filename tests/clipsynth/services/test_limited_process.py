"""Functions in a child process: limits, crashes, cancelled and killed callers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import psutil
import pytest

from clipsynth.services import limited_process
from clipsynth.services.limited_process import (
    ChildCrashed,
    ChildError,
    ChildRaised,
    CpuExceeded,
    Limits,
    MemoryExceeded,
    OutputTooLarge,
    WallTimeExceeded,
    run_limited,
    run_limited_async,
    stream_limited,
    warm_up,
)
from clipsynth.services.processes import wait_until
from tests.support import limited_functions as functions

LIMITS = Limits(cpu_s=20, wall_s=60, memory_bytes=400_000_000, output_bytes=1_000_000)


def test_a_result_comes_back():
    assert run_limited(functions.double, [1, 2], limits=LIMITS) == [2, 4]
    found = run_limited(functions.find, bytes([1, 2]), limits=LIMITS)
    assert found.shade is functions.Shade.DARK
    np.testing.assert_array_equal(found.levels, [1, 2])
    assert run_limited(functions.write_and_return, limits=LIMITS) == 9


@pytest.mark.parametrize(
    ("function", "args", "limits", "error"),
    [
        (functions.spin, (), replace(LIMITS, cpu_s=1), CpuExceeded),
        (functions.sleep, (), replace(LIMITS, wall_s=0.2), WallTimeExceeded),
        (functions.allocate, (500_000_000,), LIMITS, MemoryExceeded),
        (functions.start_a_thread_too_many, (), LIMITS, MemoryExceeded),
        (functions.large, (1_000_001,), LIMITS, OutputTooLarge),
        (functions.large, (50_000_000,), LIMITS, OutputTooLarge),
        (functions.end_by, (signal.SIGSEGV,), LIMITS, ChildCrashed),
        (functions.end_by, (signal.SIGKILL,), LIMITS, ChildCrashed),
        (functions.leave, (0,), LIMITS, ChildCrashed),
        (functions.leave, (3,), LIMITS, ChildCrashed),
        (functions.close_and_sleep, (), LIMITS, ChildCrashed),
        (functions.evil, (), LIMITS, ChildCrashed),
    ],
)
def test_each_limit_has_its_error(function, args, limits, error):
    with pytest.raises(ChildError) as raised:
        run_limited(function, *args, limits=limits)
    assert type(raised.value) is error
    assert str(raised.value)
    assert wait_until(lambda: not _children_of_helper(), timeout_s=20)


def test_a_file_has_a_limit(tmp_path):
    path = tmp_path / "file"
    for allowed in (0, 1000):
        with pytest.raises(OutputTooLarge):
            run_limited(functions.write, str(path), 1001, limits=replace(LIMITS, file_bytes=allowed))
        assert path.stat().st_size <= allowed
    run_limited(functions.write, str(path), 1001, limits=replace(LIMITS, file_bytes=1001))
    assert path.stat().st_size == 1001


def test_an_exception_comes_back_as_text():
    with pytest.raises(ChildRaised) as raised:
        run_limited(functions.refuse, "no ü" + "x" * 10_000, limits=replace(LIMITS, output_bytes=10))
    assert raised.value.kind == "builtins.ValueError"
    assert raised.value.detail.startswith("no ü")
    assert len(raised.value.detail) == 1000


def test_secrets_of_the_environment_stay_out(monkeypatch):
    monkeypatch.setenv("CLIPSYNTH_REDIS_PASSWORD", "secret")
    _restart_helper()
    assert "secret" not in run_limited(functions.environment, limits=LIMITS).values()


def test_calls_at_the_same_time():
    with ThreadPoolExecutor(4) as pool:
        spinning = pool.submit(run_limited, functions.spin, limits=replace(LIMITS, cpu_s=1))
        doubled = [pool.submit(run_limited, functions.double, [n], limits=LIMITS) for n in range(20)]
        assert [future.result() for future in doubled] == [[2 * n] for n in range(20)]
        with pytest.raises(CpuExceeded):
            spinning.result()


def test_a_helper_that_was_killed_starts_again():
    run_limited(functions.double, [1], limits=LIMITS)
    helper = limited_process._helper(functions.__name__)._process
    helper.kill()
    helper.wait()
    assert run_limited(functions.double, [1], limits=LIMITS) == [2]


def test_cancelling_kills_the_child(tmp_path):
    limits = replace(LIMITS, file_bytes=100)

    async def cancel(announced: Path) -> None:
        call = asyncio.create_task(
            run_limited_async(functions.sleep_with_child, str(announced), limits=limits)
        )
        while not (announced.exists() and announced.read_text()):
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    async def main() -> None:
        assert await run_limited_async(functions.double, [1], limits=LIMITS) == [2]
        with pytest.raises(MemoryExceeded):
            await run_limited_async(functions.allocate, 500_000_000, limits=LIMITS)
        await cancel(tmp_path / "pid")

    anyio.run(main)
    assert wait_until(lambda: not _children_of_helper(), timeout_s=20)
    assert wait_until(lambda: _is_gone(int((tmp_path / "pid").read_text())), timeout_s=20)


def test_a_killed_caller_leaves_no_process(tmp_path):
    announced = tmp_path / "pid"
    code = (
        "from clipsynth.services.limited_process import Limits, run_limited\n"
        "from tests.support.limited_functions import sleep\n"
        f"run_limited(sleep, {str(announced)!r}, limits=Limits(20, 60, 400_000_000, 1000, 100))"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as caller:
        assert wait_until(lambda: announced.exists() and announced.read_text() != "", timeout_s=60)
        descendants = psutil.Process(caller.pid).children(recursive=True)
        caller.kill()
    assert len(descendants) == 3
    assert wait_until(lambda: all(_is_gone(process.pid) for process in descendants), timeout_s=20)


def test_no_thread_or_descriptor_stays():
    warm_up(functions.double)
    run_limited(functions.double, [1], limits=LIMITS)
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(20):
        run_limited(functions.double, [1], limits=LIMITS)
    assert len(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() == threads


def _restart_helper() -> None:
    limited_process._helper(functions.__name__)._start()


def _children_of_helper() -> list[psutil.Process]:
    helper = limited_process._helper(functions.__name__)._process
    return [child for child in psutil.Process(helper.pid).children(recursive=True) if not _is_gone(child.pid)]


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_items_of_a_generator_come_one_by_one():
    sizes = [1, 300_000, 999_000] * 20
    items = stream_limited(functions.count, sizes, limits=LIMITS)
    assert [len(item) for item in items] == sizes
    assert list(stream_limited(functions.count, [], limits=LIMITS)) == []


@pytest.mark.parametrize(
    ("last", "error"), [(-1, WallTimeExceeded), (0, ChildRaised), (1_000_001, OutputTooLarge)]
)
def test_items_before_a_limit_arrive(last, error):
    items = stream_limited(functions.count, [5, 6, last], limits=replace(LIMITS, wall_s=0.5))
    assert [len(next(items)), len(next(items))] == [5, 6]
    with pytest.raises(error):
        next(items)


def test_closing_a_stream_kills_its_child(tmp_path):
    limits = replace(LIMITS, file_bytes=100)
    items = stream_limited(functions.count, [5, -1], str(tmp_path / "pid"), limits=limits)
    next(items)
    pid = int((tmp_path / "pid").read_text())
    items.close()
    assert wait_until(lambda: not psutil.pid_exists(pid), timeout_s=20)


def test_a_slow_caller_costs_a_stream_no_time():
    items = stream_limited(functions.count, [999_000] * 9, limits=replace(LIMITS, wall_s=0.5))
    next(items)
    # The child waits until the caller goes on.
    threading.Event().wait(1.0)
    assert len(list(items)) == 8
