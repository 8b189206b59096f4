"""`clipsynth webhooks`: send signed webhooks (Standard Webhooks). Any number of senders may run.

The script that changes a generation's state also queues its webhook, so none is lost. One may come twice,
with the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import logging
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

from clipsynth.errors import Gone, NotFound, ServeError
from clipsynth.jobs.queue import connect
from clipsynth.jobs.store import JobStore
from clipsynth.redis_keys import RECORD, WEBHOOKS, WEBHOOKS_ENDED
from clipsynth.schemas.generation import Delivery
from clipsynth.schemas.paths import PATH_PREFIX
from clipsynth.security.api_keys import webhook_secret
from clipsynth.security.safe_http import HostUnreachable, UrlRefused, ask
from clipsynth.settings import Settings

logger = logging.getLogger(__name__)
DELAYS_S = (5.0, 30.0, 300.0, 1800.0, 7200.0)
JITTER = 0.2
TIMEOUT_S = 10.0
CLAIM_S = 60.0  # then another sender may take the messages of one that was killed
POLL_S = 0.5
MAX_SENDING = 32

# KEYS[1] queue; ARGV[1] now, ARGV[2] end of the claim, ARGV[3] most messages.
_CLAIM = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, member in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], member) end
return due
"""
# KEYS[1] queue, KEYS[2] record, KEYS[3] counts.
# ARGV[1] member, ARGV[2] field, ARGV[3] outcome, ARGV[4] next attempt or '', ARGV[5] status.
_NOTE = """
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('HSET', KEYS[2], ARGV[2], ARGV[3]) end
if ARGV[4] ~= '' then
  redis.call('ZADD', KEYS[1], ARGV[4], ARGV[1])
elseif redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
  redis.call('HINCRBY', KEYS[3], ARGV[5], 1)
end
"""


def signature(secret: str, *, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` of a message for a secret `whsec_<base64>`.

    Raises:
        ServeError: not such a secret.
    """
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ServeError("a webhook secret is whsec_ and base64") from None
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


@dataclass(frozen=True)
class _Message:
    """One event for one address."""

    generation_id: str
    event: str
    url: str
    secret: str
    body: bytes
    attempts: int

    @property
    def member(self) -> str:
        return f"{self.generation_id} {self.event}"


class Sender:
    """Claims due messages, sends them, and records the outcome."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis, self.settings = redis, settings
        self.state = JobStore.from_settings(redis, settings)
        self._claim = redis.register_script(_CLAIM)
        self._note = redis.register_script(_NOTE)

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set, then finish the messages in progress."""
        busy: set[asyncio.Task[None]] = set()
        while not stop.is_set():
            try:
                for member in await asyncio.to_thread(self.due, MAX_SENDING - len(busy)):
                    task = asyncio.create_task(self.send(member))
                    busy.add(task)
                    task.add_done_callback(busy.discard)
            except RedisError as error:
                logger.warning("Redis: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_S)
        if busy:
            await asyncio.wait(busy)

    def due(self, limit: int) -> list[str]:
        """Claim up to `limit` due messages."""
        now = time.time()
        members = self._claim(keys=[WEBHOOKS], args=[now, now + CLAIM_S, limit])
        return [m.decode() for m in cast(list[bytes], members)]

    async def send(self, member: str) -> None:
        """Send one message; a failure is tried again later. Never raises."""
        try:
            message = await asyncio.to_thread(self._message, member)
            if message is None:
                await asyncio.to_thread(self.redis.zrem, WEBHOOKS, member)
                return
            status, detail = await self._post(message)
            await asyncio.to_thread(self._outcome, message, status, detail)

        except RedisError as error:  # another attempt follows when the claim is over
            logger.warning("Redis: %s", error)
        except Exception:
            logger.exception("webhook of %s failed", member)

    def _message(self, member: str) -> _Message | None:
        """Return the message; None if the generation was removed meanwhile."""
        generation_id, _, event = member.partition(" ")
        try:
            generation = self.state.get(generation_id)
        except (NotFound, Gone):
            return None
        raw = self.redis.hget(RECORD + generation_id, "owner")
        owner = cast(bytes, raw or b"").decode()
        if generation.webhook is None:
            return None
        body = {
            "type": f"generation.{event}",
            "timestamp": datetime.now(UTC).isoformat(),
            "data": generation.model_dump(mode="json", exclude={"webhook"}),
        }
        return _Message(
            generation_id,
            event,
            generation.webhook.url,
            webhook_secret(self.redis, owner) or self.settings.webhook_secret or "",
            json.dumps(body, ensure_ascii=False).encode(),
            next((d.attempts for d in generation.webhook.deliveries if d.event == event), 0),
        )

    async def _post(self, message: _Message) -> tuple[int | None, str]:
        """Return the address's HTTP status, if it answered, and an error text."""
        if not message.secret:
            return None, "there is no secret to sign with"
        message_id, timestamp = f"msg_{message.generation_id}_{message.event}", int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "clipsynth",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(
                message.secret, message_id=message_id, timestamp=timestamp, body=message.body
            ),
        }
        try:
            answer = await ask(
                "POST",
                message.url,
                headers=headers,
                content=message.body,
                timeout_s=TIMEOUT_S,
                allow_loopback=self.settings.webhook_loopback,
            )
        except (UrlRefused, HostUnreachable) as error:
            return None, str(error)
        return answer.status, "" if 200 <= answer.status < 300 else f"answered {answer.status}"

    def _outcome(self, message: _Message, status: int | None, detail: str) -> None:
        """Record an attempt and when the next one is due. 410 ends the attempts."""
        now, attempts = time.time(), message.attempts + 1
        next_at = None
        if detail and status != 410 and attempts <= len(DELAYS_S):
            next_at = now + DELAYS_S[attempts - 1] * random.uniform(1 - JITTER, 1 + JITTER)
        delivery = Delivery(
            event=message.event,
            status="delivered" if not detail else "pending" if next_at else "failed",
            attempts=attempts,
            detail=detail or None,
            last_attempt_at=now,
            next_attempt_at=next_at,
        )
        self._note(
            keys=[WEBHOOKS, RECORD + message.generation_id, WEBHOOKS_ENDED],
            args=[
                message.member,
                f"delivery:{message.event}",
                delivery.model_dump_json(),
                next_at or "",
                delivery.status,
            ],
        )
        logger.info("webhook %s: %s", delivery.status, message.member, extra={"attempts": attempts})


def counts(redis: Redis) -> tuple[int, dict[str, int]]:
    """Return the number of waiting messages, and the finished ones by outcome."""
    ended = cast(dict[bytes, bytes], redis.hgetall(WEBHOOKS_ENDED))
    return int(redis.zcard(WEBHOOKS)), {k.decode(): int(v) for k, v in ended.items()}


def run(settings: Settings) -> None:
    """Send until SIGINT or SIGTERM.

    Raises:
        ServeError: no Redis URL, or an invalid secret.
    """
    if not settings.redis_url:
        raise ServeError("the sender needs CLIPSYNTH_REDIS_URL; `clipsynth serve` sets it")
    signature(settings.webhook_secret or "", message_id="", timestamp=0, body=b"")
    PATH_PREFIX.set(settings.root_path)
    asyncio.run(_run(connect(settings.redis_url), settings))


async def _run(redis: Redis, settings: Settings) -> None:
    import signal

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Sender(redis, settings).run(stop)
