"""Notifications of changes of generations, for SSE and `Prefer: wait`.

One Redis subscription per process serves all requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fastapi.concurrency import run_in_threadpool
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from clipsynth.errors import Gone, NotFound
from clipsynth.jobs.store import JobStore
from clipsynth.redis_keys import EVENTS, KEY_CHANGES
from clipsynth.schemas.generation import TERMINAL, Generation
from clipsynth.schemas.paths import PATH_PREFIX
from clipsynth.security.api_keys import is_valid

logger = logging.getLogger(__name__)
PING_S = 15.0
RECONNECT_S = 1.0
# Ended generations that are remembered; far fewer end between a submit and its wait.
REMEMBERED = 4096
ENDS = frozenset({*TERMINAL, "gone"})  # messages that end a generation
Result = TypeVar("Result")


@dataclass(frozen=True)
class Snapshot:
    """A generation at one moment, and its JSON, which all streams share."""

    generation: Generation
    _texts: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The resource as JSON, with the links of this request."""
        prefix = PATH_PREFIX.get()
        if prefix not in self._texts:
            self._texts[prefix] = self.generation.model_dump_json()
        return self._texts[prefix]


class Notifications:
    """Wakes the requests that wait for a generation, and reads its record once for all of them.

    Between two changes it reads nothing. When Redis comes back, it reads every awaited record again.
    """

    def __init__(
        self, redis_url: str, state: JobStore, forget_keys: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare; `forget_keys` is called when an API key changes, or may have changed."""
        self.redis_url, self.state, self.forget_keys = redis_url, state, forget_keys
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)  # for any change
        self._waiting_for_end: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._reads: dict[str, asyncio.Task[Any]] = {}  # started after the last change
        self._valid_until: dict[str, float] = {}  # API keys found valid
        self._listens_since = math.inf  # monotonic time; since then no message was missed
        self._ended: dict[str, None] = {}  # the latest generations that ended since then, in order

    async def listen(self) -> None:
        """Receive messages from Redis until the task is cancelled."""
        while True:
            try:
                async with Redis.from_url(self.redis_url) as redis, redis.pubsub() as pubsub:
                    await pubsub.psubscribe(EVENTS + "*")
                    await self._listen(pubsub)
            except (RedisError, OSError) as error:
                self._listens_since = math.inf
                logger.warning("notifications interrupted: %s", error)
                await asyncio.sleep(RECONNECT_S)

    async def _listen(self, pubsub: PubSub) -> None:
        pinged = False  # a lost connection answers no ping
        while True:
            message = await pubsub.get_message(timeout=PING_S)
            if message is None:
                if pinged:
                    raise TimeoutError("Redis is silent")
                await pubsub.ping()
            elif message["type"] == "psubscribe":  # messages may have been missed
                self._listens_since = time.monotonic()
                self.forget_keys()
                for generation_id in {*self._waiting, *self._waiting_for_end}:
                    self._wake(generation_id, ended=True)
            elif message["type"] == "pmessage":
                generation_id = message["channel"].decode().removeprefix(EVENTS)
                self._wake(generation_id, ended=message["data"].decode() in ENDS)

            pinged = message is None

    def _wake(self, generation_id: str, *, ended: bool) -> None:
        if generation_id.startswith(KEY_CHANGES):
            self._valid_until.pop(generation_id.removeprefix(KEY_CHANGES), None)
            self.forget_keys()
        self._reads.pop(generation_id, None)
        for event in self._waiting.get(generation_id, ()):
            event.set()
        if ended:
            self._ended[generation_id] = None
            if len(self._ended) > REMEMBERED:
                del self._ended[next(iter(self._ended))]
            for event in self._waiting_for_end.get(generation_id, ()):
                event.set()

    async def _read(self, generation_id: str) -> Snapshot:
        return await self._shared(generation_id, partial(self._get, generation_id))

    async def _shared(self, name: str, read: Callable[[], Result]) -> Result:
        """Return what `read` finds after the last change of `name`; concurrent callers share one read."""
        task = self._reads.get(name)
        if task is None:
            task = asyncio.create_task(run_in_threadpool(read))
            self._reads[name] = task
            task.add_done_callback(lambda done: self._forget_read(name, done))

        # A caller that is cancelled must not cancel the read of the others.
        result: Result = await asyncio.shield(task)
        return result

    def _get(self, generation_id: str) -> Snapshot:
        try:
            return Snapshot(self.state.get(generation_id))
        except NotFound:  # it existed when the request came
            raise Gone(f"the generation {generation_id!r} and its files were removed") from None

    def _forget_read(self, name: str, read: asyncio.Task[Any]) -> None:
        if self._reads.get(name) is read:
            del self._reads[name]
        if not read.cancelled():
            read.exception()  # marks it as retrieved, also when no caller waits any more

    async def states(self, generation_id: str, owner: str) -> AsyncIterator[Snapshot]:
        """Yield the generation now, at each change and every `PING_S`, until its end.

        It also ends when the API key `owner` is no longer valid. Raises RedisError on the first read only;
        later reads are repeated until Redis answers.
        """
        with _waiter(self._waiting, generation_id, KEY_CHANGES + owner) as changed:
            snapshot = await self._read(generation_id)
            while True:
                yield snapshot
                if snapshot.generation.status in TERMINAL:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), PING_S)
                try:
                    if not await self._is_valid(owner):
                        return
                    if changed.is_set():
                        changed.clear()
                        snapshot = await self._read(generation_id)
                except RedisError:
                    await asyncio.sleep(RECONNECT_S)
                    changed.set()

    async def _is_valid(self, owner: str) -> bool:
        """Return whether a key is valid; Redis is asked once in `PING_S`, and when a key changes."""
        now = time.monotonic()
        if self._valid_until.get(owner, 0.0) < now:
            if not await self._shared(KEY_CHANGES + owner, partial(is_valid, self.state.redis, owner)):
                return False
            self._valid_until = {o: at for o, at in self._valid_until.items() if at >= now}
            self._valid_until[owner] = now + PING_S
        return True

    async def wait(
        self, generation: Generation, timeout_s: float, *, made_after: float = -math.inf
    ) -> Generation:
        """Return the generation at its end, or its state after `timeout_s`; arguments as of `at_end`."""
        found, _ = await self.at_end(lambda _: None, generation, timeout_s, made_after=made_after)
        return found

    async def at_end(
        self,
        act: Callable[[Generation], Result],
        generation: Generation,
        timeout_s: float,
        *,
        made_after: float = -math.inf,
    ) -> tuple[Generation, Result | None]:
        """Return the generation at its end and what `act` makes of it; after `timeout_s` its state and None.

        While Redis does not answer, reads are repeated. If this process has received all messages since
        `made_after` (a monotonic time before the submit), Redis is not asked whether the generation has
        already ended.

        Args:
            act: runs in the thread that reads the generation, to save a change of thread.
        """

        def read() -> tuple[Generation, Result | None]:
            found = self._get(generation.id).generation
            return found, act(found) if found.status in TERMINAL else None

        deadline = time.monotonic() + timeout_s
        result: Result | None = None
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
                    generation, result = await run_in_threadpool(read)
                except RedisError:
                    if left > 0:  # an error would make the client submit an accepted request again
                        await asyncio.sleep(min(left, RECONNECT_S))
                        ended.set()
                if generation.status in TERMINAL or left == 0:
                    return generation, result

    async def _may_be_over(self, generation_id: str) -> bool:
        try:
            [status_view] = await run_in_threadpool(self.state.status_views, [generation_id])
        except RedisError:
            return True
        return status_view is None or status_view.status in TERMINAL

    async def stream(
        self, generation_id: str, owner: str, last_event_id: str | None = None
    ) -> AsyncIterator[bytes]:
        """Yield server-sent events with the resource: `status`, `progress`, `completed` or `gone`.

        An event's id is the state that it reports, so a client that reconnects with it receives only newer
        events.
        """
        status = None
        try:
            async for snapshot in self.states(generation_id, owner):
                generation = snapshot.generation
                event_id = event_id_of(generation)
                if generation.status in TERMINAL:
                    event = "completed"
                elif event_id == last_event_id:
                    yield KEEPALIVE_COMMENT
                    continue
                else:
                    event = "progress" if status == generation.status else "status"
                status, last_event_id = generation.status, event_id
                yield format_sse_event(id=event_id, event=event, data_str=snapshot.text)
        except Gone as error:
            data = json.dumps({"code": error.code, "detail": str(error)})
            yield format_sse_event(event="gone", data_str=data)


def event_id_of(generation: Generation) -> str:
    """Return the id of the event that reports this state."""
    return f"{generation.status}-{generation.progress.step if generation.progress else 0}"


@contextlib.contextmanager
def _waiter(waiting: defaultdict[str, set[asyncio.Event]], *names: str) -> Iterator[asyncio.Event]:
    """Register an asyncio.Event for a generation or key while the context lasts."""
    event = asyncio.Event()
    for name in names:
        waiting[name].add(event)
    try:
        yield event
    finally:
        for name in names:
            waiting[name].discard(event)
            if not waiting[name]:
                del waiting[name]
