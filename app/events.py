"""Waiting for generations to change: one Redis subscription per process wakes all who wait, as server-sent events or `Prefer: wait`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator

from fastapi.concurrency import run_in_threadpool
from redis.asyncio import Redis
from redis.exceptions import RedisError

from clipsynth.errors import Gone
from clipsynth.schemas import TERMINAL, Generation
from clipsynth.state import EVENTS_PREFIX, State

logger = logging.getLogger(__name__)
PING_S = 15.0
RECONNECT_S = 1.0
ENDS = frozenset({*TERMINAL, "gone"})  # of what Redis tells, what ends a generation


class Events:
    """Wakes those who wait for a generation. A lost message costs them `PING_S` at most: they look for themselves then."""

    def __init__(self, redis_url: str, state: State) -> None:
        self.redis_url, self.state = redis_url, state
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)  # for any change
        self._waiting_for_end: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def listen(self) -> None:
        """Pass on what Redis says, for ever."""
        while True:
            try:
                async with Redis.from_url(self.redis_url) as redis, redis.pubsub() as pubsub:
                    await pubsub.psubscribe(EVENTS_PREFIX + "*")
                    async for message in pubsub.listen():
                        if message["type"] == "pmessage":
                            generation_id = message["channel"].decode().removeprefix(EVENTS_PREFIX)
                            self._wake(generation_id, message["data"].decode())
            except (RedisError, OSError) as error:
                logger.warning("events interrupted: %s", error)
                await asyncio.sleep(RECONNECT_S)

    def _wake(self, generation_id: str, change: str) -> None:
        for event in self._waiting.get(generation_id, ()):
            event.set()
        if change in ENDS:
            for event in self._waiting_for_end.get(generation_id, ()):
                event.set()

    async def states(
        self, generation_id: str, *, timeout_s: float = float("inf")
    ) -> AsyncIterator[Generation]:
        """Yield the generation now, at each change and at least every `PING_S`, until its end or for `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with _waiter(self._waiting, generation_id) as changed:
            while True:
                changed.clear()
                generation = await run_in_threadpool(self.state.get, generation_id)
                yield generation
                left = deadline - time.monotonic()
                if generation.status in TERMINAL or left <= 0:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), min(left, PING_S))

    async def wait(self, generation: Generation, timeout_s: float) -> Generation:
        """Return the generation at its end, or as it is after `timeout_s`. What happens on the way there is not read."""
        deadline = time.monotonic() + timeout_s
        with _waiter(self._waiting_for_end, generation.id) as ended:
            while (left := deadline - time.monotonic()) > 0:
                standing = (await run_in_threadpool(self.state.standings, [generation.id]))[0]
                if standing is None or standing.status in TERMINAL:
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), min(left, PING_S))
                    break
        return await run_in_threadpool(self.state.get, generation.id)

    async def stream(self, generation_id: str, last_event_id: str | None = None) -> AsyncIterator[str]:
        """Yield server-sent events: `status`, `progress`, at last `completed` (or `gone`), each with the resource.

        An event's id is the state that it tells of, so a client that comes back with it is told of newer ones alone.
        """
        status = None
        try:
            async for generation in self.states(generation_id):
                progress = generation.progress
                event_id = f"{generation.status}-{progress.step if progress else 0}"
                if generation.status in TERMINAL:
                    event = "completed"
                elif event_id == last_event_id:
                    yield ": ping\n\n"
                    continue
                else:
                    event = "progress" if status == generation.status else "status"
                status, last_event_id = generation.status, event_id
                yield f"id: {event_id}\nevent: {event}\ndata: {generation.model_dump_json()}\n\n"
        except Gone as error:
            data = json.dumps({"code": error.code, "detail": str(error)})
            yield f"event: gone\ndata: {data}\n\n"


@contextlib.contextmanager
def _waiter(waiting: defaultdict[str, set[asyncio.Event]], generation_id: str) -> Iterator[asyncio.Event]:
    """Be among those who are woken for a generation."""
    event = asyncio.Event()
    waiting[generation_id].add(event)
    try:
        yield event
    finally:
        waiting[generation_id].discard(event)
        if not waiting[generation_id]:
            del waiting[generation_id]
