"""Send requests from one asyncio process: at given times, or with a fixed number in flight.

Latency counts from the time at which a request was due, so a client that waits cannot hide a slow server (no
coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Send = Callable[[Any], Awaitable[Any]]


@dataclass
class TimedAnswer:
    """One request; times in seconds from the start of the run. `done` is infinite without a good answer."""

    intended: float
    sent: float = math.inf
    done: float = math.inf
    # What `send` returned.
    reply: Any = None

    @property
    def latency_s(self) -> float:
        return self.done - self.intended

    def share(self, start: float, end: float) -> float:
        """Return the share of its time that lies between `start` and `end`; 0 without an answer."""
        inside = min(self.done, end) - max(self.intended, start)
        return max(0.0, inside) / self.latency_s


@dataclass(frozen=True)
class WindowFigures:
    """Figures of the requests that were due in a window.

    An answer counts for `throughput` by the share of its time in the window; `answered` is of the whole run.
    """

    throughput: float
    p50_s: float
    p95_s: float
    requests: int
    unanswered: int
    answered: int


def figures(
    answers: Sequence[TimedAnswer], start: float, end: float, *, closed_loop: bool = False
) -> WindowFigures:
    """Return the figures of the window from `start` to `end`.

    Latencies are of the requests due in the window; in a closed loop, of the answers that came in it.
    """
    due = [a for a in answers if start <= (a.done if closed_loop else a.intended) < end]
    latencies = [answer.latency_s for answer in due] or [math.inf]
    p50, p95 = np.quantile(latencies, [0.5, 0.95], method="higher")
    throughput = sum(answer.share(start, end) for answer in answers) / (end - start)
    unanswered = sum(answer.done == math.inf for answer in due)
    answered = sum(answer.done < math.inf for answer in answers)
    return WindowFigures(throughput, float(p50), float(p95), len(due), unanswered, answered)


class LoadRun:
    """A run against `send`, which returns something true for a good answer."""

    def __init__(self, send: Send) -> None:
        self.send, self.answers, self.started = send, list[TimedAnswer](), time.perf_counter()

    def _now(self) -> float:
        return time.perf_counter() - self.started

    async def _ask(self, request: Any, intended: float) -> None:
        answer = TimedAnswer(intended, sent=self._now())
        self.answers.append(answer)
        answer.reply = await self.send(request)
        if answer.reply:
            answer.done = self._now()

    async def open_loop(self, requests: Iterator[Any], times: Sequence[float], drain_s: float = 20) -> None:
        """Send at the given times, then wait for answers for at most `drain_s`."""
        self.started = time.perf_counter()
        tasks = []
        for at, request in zip(times, requests, strict=False):
            if (left := at - self._now()) > 0:
                await asyncio.sleep(left)
            tasks.append(asyncio.create_task(self._ask(request, at)))
        await _finish(tasks, drain_s)
        self.answers += [TimedAnswer(at) for at in times[len(self.answers) :]]

    async def closed_loop(
        self, requests: Iterator[Any], in_flight: int, seconds: float, drain_s: float = 20
    ) -> None:
        """Keep `in_flight` requests under way for `seconds`, then wait for answers for at most `drain_s`."""
        self.started = time.perf_counter()

        async def client() -> None:
            while (now := self._now()) < seconds:
                await self._ask(next(requests), now)

        await _finish([asyncio.create_task(client()) for _ in range(in_flight)], seconds + drain_s)


async def _finish(tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """Wait, cancel the tasks that are left, and raise the first error."""
    done, left = await asyncio.wait(tasks, timeout=seconds) if tasks else (set(), set())
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    for task in done:
        task.result()


@dataclass(frozen=True)
class HttpAnswer:
    """An answer; `head` is in lower case."""

    status: int
    head: bytes
    body: bytes


class HttpClient:
    """Send one kind of request to a local server over connections that stay open.

    It takes much less CPU than httpx, for it shares the cores with the server.
    """

    def __init__(self, port: int, path: str, *, method: str = "POST", **headers: str) -> None:
        self.port = port
        lines = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", **headers}
        self._head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._opened: list[asyncio.StreamWriter] = []

    async def ask(self, body: bytes = b"") -> HttpAnswer:
        message = f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        while self._idle:
            # servers close connections that were idle for some seconds
            with contextlib.suppress(EOFError, ConnectionError):
                return await self._exchange(message, *self._idle.pop())
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._opened.append(writer)
        return await self._exchange(message, reader, writer)

    async def _exchange(
        self, message: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> HttpAnswer:
        try:
            writer.write(message)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await _read_body(reader, head)
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))
        return HttpAnswer(int(head.split(b" ", 2)[1]), head, body)

    async def close(self) -> None:
        for writer in self._opened:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    name = b"content-length:"
    if name in head:
        return await reader.readexactly(int(head.partition(name)[2].partition(b"\r\n")[0]))
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body


def measure(
    send: Send, requests: Iterator[Any], *, seconds: float, warm_up_s: float,
    times: Sequence[float] | None = None, in_flight: int = 1,
) -> WindowFigures:  # fmt: skip
    """Send at the given times, or keep `in_flight` requests under way; return the window's figures."""
    run, end = LoadRun(send), warm_up_s + seconds
    closed = times is None
    asyncio.run(run.closed_loop(requests, in_flight, end) if closed else run.open_loop(requests, times))
    return figures(run.answers, warm_up_s, end, closed_loop=closed)
