"""Budgets of what all requests share, so that no client uses up everything (OWASP API4).

`Budgets` has all of one process: bytes of uploads, event streams, slots for images, and room in Redis and on
disk. Records in Redis are counted by admission (clipsynth/admission), webhooks by their sender.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import cast

from redis import Redis

from clipsynth.errors import ClipSynthError, DownloadBudget, RateLimited, StorageFull, UploadBudget
from clipsynth.redis_keys import SHARES
from clipsynth.settings import Settings
from clipsynth.storage import Storage, free_bytes

# A share that is not renewed for this time expires: its process was killed.
SHARE_TTL_S, RENEW_S = 60.0, 20.0
RETRY_S = 5.0
# Bodies and answers of up to this many bytes are counted only in their process.
SMALL_UPLOAD = 262_144
# Images decoded, and requests whose images are fetched, at a time.
MAX_DECODING, MAX_FETCHES = 2, 8
# Videos received and copied at a time.
MAX_VIDEOS = 2
# Requests of one key that wait for a slot, and for how many seconds.
MAX_WAITING, MAX_WAIT_S = 16, 10.0
# Seconds for which an answer of `Room` counts.
LOOK_S = 1.0
# Share of Redis' `maxmemory` for accepted jobs; the rest is for their transitions, and for removal.
REDIS_SHARE = 0.9

_TAKE = """
-- KEYS: 1 shares of an owner, "<amount> <id>" by expiry. ARGV: 1 now, 2 expiry, 3 most, 4 amount, 5 share.
-- Returns whether the share was taken. Removes expired ones first: Redis at `maxmemory` stops only scripts
-- that have written nothing yet.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
local held = tonumber(ARGV[4])
for _, share in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  held = held + string.match(share, '^%d+')
end
if held > tonumber(ARGV[3]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[5])
redis.call('EXPIREAT', KEYS[1], math.ceil(ARGV[2]))
return 1
"""


@dataclass(frozen=True)
class Share:
    """An amount that an owner holds; `member` is its name in Redis, empty if it is not counted there."""

    owner: str
    amount: int
    member: str


class Budget:
    """How much of one resource this process and each API key may hold at a time, such as bytes of uploads.

    A key's shares are counted in Redis, over all processes; those of up to `uncounted` only in this process.
    """

    def __init__(
        self,
        redis: Redis,
        name: str,
        error: Callable[[str], ClipSynthError],
        *,
        per_process: int,
        per_key: int,
        uncounted: int = 0,
    ) -> None:
        """Create a budget of which nothing is held.

        Args:
            error: makes the error of a refusal from "this API key" or "this process".
        """
        self.redis, self.name, self.error = redis, name, error
        self.per_process, self.per_key, self.uncounted = per_process, per_key, uncounted
        self.held, self.refused = 0, Counter({"key": 0, "process": 0})
        self._by_owner: Counter[str] = Counter()
        self._counted: set[Share] = set()
        self._lock = threading.Lock()

    def take(self, owner: str, amount: int) -> Share:
        """Hold an amount until `give`; raise the budget's error if too little is left."""
        is_counted = amount > self.uncounted
        share = Share(owner, amount, f"{amount} {secrets.token_hex(8)}" if is_counted else "")
        with self._lock:
            if self._by_owner[owner] + amount > self.per_key:
                raise self._refusal("key")
            if self.held + amount > self.per_process:
                raise self._refusal("process")
            self.held += amount
            self._by_owner[owner] += amount
            self._counted |= {share} if is_counted else set()
        try:
            if is_counted and not self._count(share):
                raise self._refusal("key")
        except BaseException:
            self.give(share)
            raise
        return share

    def give(self, share: Share) -> None:
        """Give a share back."""
        with self._lock:
            self.held -= share.amount
            self._by_owner -= Counter({share.owner: share.amount})
            self._counted.discard(share)
        if share.member:
            with contextlib.suppress(Exception):  # then it expires
                self.redis.zrem(self._key(share.owner), share.member)

    def give_soon(self, share: Share) -> None:
        """Give a share back from an event loop, without waiting for Redis."""
        if share.member:
            asyncio.get_running_loop().run_in_executor(None, self.give, share)
        else:
            self.give(share)

    def renew(self) -> None:
        """Renew the shares of this process in Redis; call it every `RENEW_S`."""
        expires_at = time.time() + SHARE_TTL_S
        with self._lock:
            shares = list(self._counted)
        with self.redis.pipeline(transaction=False) as pipeline:
            for share in shares:
                pipeline.zadd(self._key(share.owner), {share.member: expires_at}, xx=True)
                pipeline.expire(self._key(share.owner), int(SHARE_TTL_S))
            pipeline.execute()

    def used(self, owner: str) -> int:
        """Return what an owner holds, over all processes."""
        shares = cast(list[bytes], self.redis.zrange(self._key(owner), time.time(), "inf", byscore=True))
        return sum(int(share.split()[0]) for share in shares)

    def _key(self, owner: str) -> str:
        return f"{SHARES}{self.name}:{owner}"

    def _count(self, share: Share) -> bool:
        now = time.time()
        args: list[str | int | float] = [now, now + SHARE_TTL_S, self.per_key, share.amount, share.member]
        return bool(self.redis.register_script(_TAKE)(keys=[self._key(share.owner)], args=args))

    def _refusal(self, scope: str) -> ClipSynthError:
        self.refused[scope] += 1
        return self.error("this API key" if scope == "key" else "this process")


class Slots:
    """Slots that API keys take in turns: of the waiting keys, the one that waits longest is next."""

    def __init__(
        self, name: str, number: int, *, per_key: int | None = None, what: str = "images of this API key"
    ) -> None:
        self.name, self.per_process, self.free = name, number, number
        self.what = what
        self.per_key, self.refused = per_key or number, Counter({"key": 0})
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def held(self) -> int:
        return self.per_process - self.free

    @contextlib.asynccontextmanager
    async def hold(self, owner: str, *, max_waiting: int = MAX_WAITING) -> AsyncIterator[None]:
        """Hold a slot; wait for it behind at most `max_waiting` requests of the same owner.

        Raises:
            RateLimited: more of them wait, or it waited for `MAX_WAIT_S`.
        """
        if self.free and self._running[owner] < self.per_key:
            self.free -= 1
        else:
            await self._turn(owner, max_waiting)
        self._running[owner] += 1
        try:
            yield
        finally:
            self._running -= Counter({owner: 1})
            self._release()

    async def _turn(self, owner: str, max_waiting: int) -> None:
        queue = self._waiting.setdefault(owner, deque())
        turn = asyncio.get_running_loop().create_future()
        try:
            if sum(not turn.done() for turn in queue) >= max_waiting:
                raise TimeoutError
            queue.append(turn)
            async with asyncio.timeout(MAX_WAIT_S):
                await turn
        except TimeoutError:
            self.refused["key"] += 1
            detail = f"too many {self.what} at a time"
            raise RateLimited(detail, retry_after_s=RETRY_S) from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise
        finally:
            if not queue and self._waiting.get(owner) is queue:
                del self._waiting[owner]

    def _release(self) -> None:
        while self._waiting:
            owner = next(iter(self._waiting))
            queue = self._waiting.pop(owner)
            turns = [turn for turn in queue if not turn.done()]
            if turns[1:]:
                self._waiting[owner] = deque(turns[1:])  # behind the others
            if turns:
                turns[0].set_result(None)
                return
        self.free += 1


class Room:
    """Whether Redis and the disk have room for more jobs."""

    def __init__(self, redis: Redis, storage: Storage, settings: Settings) -> None:
        self.redis, self.storage, self.settings = redis, storage, settings
        self._lock = threading.Lock()
        self._looked_at, self._reason = float("-inf"), ""

    def check(self) -> None:
        """Look at both, at most once in `LOOK_S`.

        Raises:
            StorageFull: Redis is near its `maxmemory`, or the disk near its reserve.
        """
        with self._lock:
            if time.monotonic() - self._looked_at >= LOOK_S:
                self._reason, self._looked_at = self._look(), time.monotonic()
        if self._reason:
            raise StorageFull(self._reason)

    def _look(self) -> str:
        memory = cast(dict[str, int], self.redis.info("memory"))
        most = memory.get("maxmemory", 0)
        if most and memory["used_memory"] > REDIS_SHARE * most:
            return "Redis has no memory for more jobs; results expire, or delete some"
        if min(self._free_bytes()) < self.settings.storage_reserve_bytes:
            return "the disk has no room for more results; some expire, or delete some"
        return ""

    def _free_bytes(self) -> Iterator[float]:
        """Return the room on the disks of the results and of an embedded Redis."""
        free = self.storage.free_bytes()
        yield math.inf if free is None else free
        if (self.settings.redis_url or "").startswith("unix:") and self.settings.data_dir.is_dir():
            yield free_bytes(self.settings.data_dir)


class Budgets:
    """All budgets of an API process."""

    def __init__(self, redis: Redis, storage: Storage, settings: Settings) -> None:
        self.room = Room(redis, storage, settings)
        self.decoding = Slots("decoding", MAX_DECODING)
        self.videos = Slots("videos", MAX_VIDEOS, what="videos")
        self.fetches = Slots("fetches", MAX_FETCHES, per_key=MAX_FETCHES // 2)
        self.uploads = Budget(
            redis,
            "upload_bytes",
            lambda who: UploadBudget(f"{who} receives too many bytes at a time", retry_after_s=RETRY_S),
            per_process=settings.max_upload_bytes,
            per_key=settings.max_upload_bytes_per_key,
            uncounted=SMALL_UPLOAD,
        )
        self.downloads = Budget(
            redis,
            "download_bytes",
            lambda who: DownloadBudget(f"{who} sends too many bytes at a time", retry_after_s=RETRY_S),
            per_process=settings.max_download_bytes,
            per_key=settings.max_download_bytes_per_key,
            uncounted=SMALL_UPLOAD,
        )
        self.streams = Budget(
            redis,
            "streams",
            lambda who: RateLimited(f"{who} has too many event streams", retry_after_s=RETRY_S),
            per_process=max(1, settings.max_connections // 2),
            per_key=settings.streams_per_key,
        )

    def all(self) -> list[Budget | Slots]:
        """Return the budgets that are counted in this process."""
        slots = [self.decoding, self.fetches, self.videos]
        return [self.uploads, self.downloads, self.streams, *slots]

    async def renew(self) -> None:
        """Renew what this process holds, until the task is cancelled."""
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(Exception):  # Redis is away; shares last for some more turns
                for budget in self.all():
                    if isinstance(budget, Budget):
                        await asyncio.to_thread(budget.renew)
