"""Waiting for generations to change: one Redis subscription per process wakes all who wait, as server-sent events or `Prefer: wait`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator

from fastapi.concurrency import run_in_threadpool
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from clipsynth.errors import Gone
from clipsynth.jobs.store import EVENTS_PREFIX, JobStore
from clipsynth.schemas.generation import TERMINAL, Generation

logger = logging.getLogger(__name__)
PING_S = 15.0
RECONNECT_S = 1.0
REMEMBERED = 4096  # ended generations; between its making and the wait for it, far fewer end
ENDS = frozenset({*TERMINAL, "gone"})  # of what Redis tells, what ends a generation


class Notifications:
    """Wakes those who wait for a generation, and reads it once for all of them.

    Between two changes nothing is read. What may have been missed while Redis was away is looked at when it is back.
    """

    def __init__(self, redis_url: str, state: JobStore) -> None:
        self.redis_url, self.state = redis_url, state
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)  # for any change
        self._waiting_for_end: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._reads: dict[str, asyncio.Task[Generation]] = {}  # begun after the last change
        self._listens_since = math.inf  # monotonic time from which on nothing was missed
        self._ended: dict[str, None] = {}  # what has ended since then, the latest of it, in order

    async def listen(self) -> None:
        """Pass on what Redis says, for ever."""
        while True:
            try:
                async with Redis.from_url(self.redis_url) as redis, redis.pubsub() as pubsub:
                    await pubsub.psubscribe(EVENTS_PREFIX + "*")
                    await self._listen(pubsub)
            except (RedisError, OSError) as error:
                self._listens_since = math.inf
                logger.warning("events interrupted: %s", error)
                await asyncio.sleep(RECONNECT_S)

    async def _listen(self, pubsub: PubSub) -> None:
        asked = False  # a connection that is lost without a word answers no ping
        while True:
            message = await pubsub.get_message(timeout=PING_S)
            if message is None:
                if asked:
                    raise TimeoutError("Redis is silent")
                await pubsub.ping()
            elif message["type"] == "psubscribe":  # anything may have been missed
                self._listens_since = time.monotonic()
                for generation_id in {*self._waiting, *self._waiting_for_end}:
                    self._wake(generation_id, ended=True)
            elif message["type"] == "pmessage":
                generation_id = message["channel"].decode().removeprefix(EVENTS_PREFIX)
                self._wake(generation_id, ended=message["data"].decode() in ENDS)
            asked = message is None

    def _wake(self, generation_id: str, *, ended: bool) -> None:
        self._reads.pop(generation_id, None)
        for event in self._waiting.get(generation_id, ()):
            event.set()
        if ended:
            self._ended[generation_id] = None
            if len(self._ended) > REMEMBERED:
                del self._ended[next(iter(self._ended))]
            for event in self._waiting_for_end.get(generation_id, ()):
                event.set()

    async def _read(self, generation_id: str) -> Generation:
        """Return the generation as it is after the last change; those who ask at the same time share one look."""
        read = self._reads.get(generation_id)
        if read is None:
            read = asyncio.create_task(run_in_threadpool(self.state.get, generation_id))
            self._reads[generation_id] = read
            read.add_done_callback(lambda done: self._forget_read(generation_id, done))
        return await asyncio.shield(read)  # one who leaves must not end it for the others

    def _forget_read(self, generation_id: str, read: asyncio.Task[Generation]) -> None:
        if self._reads.get(generation_id) is read:
            del self._reads[generation_id]
        if not read.cancelled():
            read.exception()  # whoever still waits has it; asyncio would complain where nobody does

    async def states(
        self, generation_id: str, *, timeout_s: float = float("inf")
    ) -> AsyncIterator[Generation]:
        """Yield the generation now, at each change and at least every `PING_S`, until its end or for `timeout_s`.

        Only the first look may fail for Redis; later ones are made again until it answers.
        """
        deadline = time.monotonic() + timeout_s
        with _waiter(self._waiting, generation_id) as changed:
            generation = await self._read(generation_id)
            while True:
                yield generation
                left = deadline - time.monotonic()
                if generation.status in TERMINAL or left <= 0:
                    return
                try:
                    await asyncio.wait_for(changed.wait(), min(left, PING_S))
                except TimeoutError:
                    continue
                changed.clear()
                try:
                    generation = await self._read(generation_id)
                except RedisError:
                    await asyncio.sleep(min(max(0.0, left), RECONNECT_S))
                    changed.set()

    async def wait(
        self, generation: Generation, timeout_s: float, *, made_after: float = -math.inf
    ) -> Generation:
        """Return the generation at its end, or as it is after `timeout_s`. What happens on the way there is not read.

        A Redis that does not answer is asked again until then. Whether it has ended already is not asked of Redis where all that happened since `made_after` was heard, a monotonic time before it was made.
        """
        deadline = time.monotonic() + timeout_s
        with _waiter(self._waiting_for_end, generation.id) as ended:
            if self._listens_since < made_after:
                over = generation.id in self._ended
            else:
                over = await self._may_be_over(generation.id)
            if over:
                ended.set()
            while True:
                left = max(0.0, deadline - time.monotonic())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), min(left, PING_S))
                ended.clear()
                try:
                    generation = await self._read(generation.id)
                except RedisError:
                    if left > 0:  # an error would have it made again, though it was accepted
                        await asyncio.sleep(min(left, RECONNECT_S))
                        ended.set()
                if generation.status in TERMINAL or left == 0:
                    return generation

    async def _may_be_over(self, generation_id: str) -> bool:
        try:
            [status_view] = await run_in_threadpool(self.state.status_views, [generation_id])
        except RedisError:
            return True
        return status_view is None or status_view.status in TERMINAL

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
