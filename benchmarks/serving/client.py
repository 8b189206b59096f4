"""One asyncio process that asks, and what it saw: open loop at given times, or a fixed number of requests always under way.

Latency counts from the time at which a request was to be sent, so a server that holds up its clients is charged for it (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.serving.accelerator import Request

Send = Callable[[Request], Awaitable[bool]]


@dataclass
class Answer:
    """One request; seconds from the start of the run. `done` is infinite where no good answer came in time."""

    intended: float
    sent: float = math.inf
    done: float = math.inf

    @property
    def latency_s(self) -> float:
        return self.done - self.intended

    def share(self, start: float, end: float) -> float:
        """Return the share of its time that lies between `start` and `end`; 0 without an answer."""
        inside = min(self.done, end) - max(self.intended, start)
        return max(0.0, inside) / self.latency_s


@dataclass(frozen=True)
class Figures:
    """What a window showed."""

    throughput: (
        float  # good answers per second of the window; one counts by the share of its time that lies in it
    )
    p50_s: float
    p95_s: float
    requests: int  # that were to be sent in the window
    unanswered: int
    answered: int  # in the whole run
    late_s: float  # 0.99 quantile of how late the client itself was


def figures(answers: Sequence[Answer], start: float, end: float, *, closed_loop: bool = False) -> Figures:
    """Return what the window from `start` to `end` showed: latencies of the requests meant to be sent in it, and throughput.

    Answers may come in bursts of a hundred: that a burst falls just before or after the end must not count.
    In a closed loop latencies are of the answers that came in the window.
    """
    meant = [a for a in answers if start <= (a.done if closed_loop else a.intended) < end]
    latencies = [answer.latency_s for answer in meant] or [math.inf]
    late = [answer.sent - answer.intended for answer in meant if answer.sent < math.inf] or [0.0]
    p50, p95 = np.quantile(latencies, [0.5, 0.95], method="higher")
    return Figures(
        throughput=sum(answer.share(start, end) for answer in answers) / (end - start),
        p50_s=float(p50),
        p95_s=float(p95),
        requests=len(meant),
        unanswered=sum(answer.done == math.inf for answer in meant),
        answered=sum(answer.done < math.inf for answer in answers),
        late_s=float(np.quantile(late, 0.99)),
    )


@dataclass
class Run:
    """A run against `send`."""

    send: Send
    answers: list[Answer] = field(default_factory=list)
    started: float = 0.0

    def now(self) -> float:
        return time.perf_counter() - self.started

    async def _ask(self, request: Request, intended: float) -> None:
        answer = Answer(intended, sent=self.now())
        self.answers.append(answer)
        if await self.send(request):
            answer.done = self.now()

    async def open_loop(self, wanted: Iterator[Request], times: Sequence[float], drain_s: float) -> None:
        """Send at the given times, whatever is still under way; then wait for the answers for `drain_s` at most."""
        self.started = time.perf_counter()
        tasks = []
        for at, request in zip(times, wanted, strict=False):
            if (left := at - self.now()) > 0:
                await asyncio.sleep(left)
            tasks.append(asyncio.create_task(self._ask(request, at)))
        await _finish(tasks, drain_s)

    async def closed_loop(
        self, wanted: Iterator[Request], under_way: int, seconds: float, drain_s: float
    ) -> None:
        """Keep so many requests under way for so long; then wait for the answers for `drain_s` at most."""
        self.started = time.perf_counter()

        async def client() -> None:
            while (now := self.now()) < seconds:
                await self._ask(next(wanted), now)

        await _finish([asyncio.create_task(client()) for _ in range(under_way)], seconds + drain_s)


async def _finish(tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """Wait, cancel what is left, and raise what went wrong."""
    done, left = await asyncio.wait(tasks, timeout=seconds) if tasks else (set(), set())
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    for task in done:
        task.result()


class Http:
    """A client of one server on this machine that keeps its connections. It does as little as it can, for it shares the cores with the servers."""

    def __init__(self, port: int, path: str, headers: dict[str, str], *, wrap: str | None = None) -> None:
        """`wrap`: the field of the body that is a list of requests, where the server wants that."""
        self.port, self.wrap = port, wrap
        lines = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", **headers}
        self._head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._opened: list[asyncio.StreamWriter] = []
        self.refused: dict[int, int] = {}

    async def post(self, request: Request) -> bool:
        """Return whether the sound came."""
        fields = dataclasses.asdict(request)
        body = json.dumps({self.wrap: [fields]} if self.wrap else fields).encode()
        message = f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        status = None
        while status is None and self._idle:
            with contextlib.suppress(
                EOFError, ConnectionError
            ):  # servers close what was idle for some seconds
                status = await self._exchange(message, *self._idle.pop())
        if status is None:
            status = await self._exchange(message, *await self._connect())
        if status != 200:
            self.refused[status] = self.refused.get(status, 0) + 1
        return status == 200

    async def _exchange(
        self, message: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> int:
        """Return the status of the answer."""
        try:
            writer.write(message)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await _read_body(reader, head)
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))
        return int(head.split(b" ", 2)[1])

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = await asyncio.open_connection("127.0.0.1", self.port)
        self._opened.append(connection[1])
        return connection

    async def close(self) -> None:
        """Close all connections."""
        for writer in self._opened:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> None:
    name = b"content-length:"
    if name in head:
        await reader.readexactly(int(head.partition(name)[2].partition(b"\r\n")[0]))
        return
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        await reader.readexactly(size + 2)
    await reader.readuntil(b"\r\n")


def saturate(
    send: Send,
    wanted: Iterator[Request],
    *,
    under_way: int,
    warm_up_s: float,
    seconds: float,
    drain_s: float,
) -> Figures:
    """Keep a server busy; return what a window of so many seconds showed."""
    run = Run(send)
    asyncio.run(run.closed_loop(wanted, under_way, warm_up_s + seconds, drain_s))
    return figures(run.answers, warm_up_s, warm_up_s + seconds, closed_loop=True)


def ask_at(
    send: Send,
    wanted: Iterator[Request],
    times: Sequence[float],
    *,
    warm_up_s: float,
    seconds: float,
    drain_s: float,
) -> Figures:
    """Ask at the given times; return what the window of so many seconds after the warm-up showed."""
    run = Run(send)
    asyncio.run(run.open_loop(wanted, times, drain_s))
    answered = len(run.answers)
    run.answers += [Answer(at) for at in itertools.islice(times, answered, None)]
    return figures(run.answers, warm_up_s, warm_up_s + seconds)
