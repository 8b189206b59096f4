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
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from redis import Redis
from redis.exceptions import RedisError

from clipsynth.errors import Gone, NotFound, ServeError
from clipsynth.jobs.queue import connect
from clipsynth.jobs.store import JobStore
from clipsynth.jobs.webhook_queue import WebhookQueue
from clipsynth.schemas.generation import Delivery
from clipsynth.schemas.paths import PATH_PREFIX
from clipsynth.security.api_keys import webhook_secret
from clipsynth.security.safe_http import HostUnreachable, UrlRefused, ask
from clipsynth.services.metrics_server import Heartbeat, expose
from clipsynth.settings import Settings

logger = logging.getLogger(__name__)
DELAYS_S = (5.0, 30.0, 300.0, 1800.0, 7200.0)
JITTER = 0.2
TIMEOUT_S = 10.0
POLL_S = 0.5
# Messages that a sender sends at a time: in all, of one API key, and to one host.
MAX_SENDING, PER_KEY, PER_HOST = 64, 8, 4
# A message to a busy host is looked at again after this time.
BUSY_S = 1.0


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

    owner: str
    generation_id: str
    event: str
    url: str
    secret: str
    body: bytes
    attempts: int

    @property
    def member(self) -> str:
        return f"{self.generation_id} {self.event}"

    @property
    def host(self) -> str:
        """Host and port; the leading slashes make it no key's id."""
        return f"//{urlsplit(self.url).netloc}"


class Sender:
    """Claims due messages, sends them, and records the outcome. API keys take turns."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis, self.settings = redis, settings
        self.state = JobStore.from_settings(redis, settings)
        self.queue = WebhookQueue(redis)
        self.heartbeat = Heartbeat()
        self._busy: Counter[str] = Counter()  # messages in progress by owner and by host
        self._turns: dict[str, int] = {}  # by owner, the number of the claim that served it last
        self._claims = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set, then finish the messages in progress."""
        busy: set[asyncio.Task[None]] = set()
        while not stop.is_set():
            self.heartbeat.beat()
            try:
                for owner, member in await asyncio.to_thread(self.due, MAX_SENDING - len(busy)):
                    task = asyncio.create_task(self.send(owner, member))
                    busy.add(task)
                    task.add_done_callback(busy.discard)
            except RedisError as error:
                logger.warning("Redis: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_S)
        if busy:
            await asyncio.wait(busy)

    def due(self, limit: int) -> list[tuple[str, str]]:
        """Claim up to `limit` due messages, each with its owner: first of owners served longest ago."""
        owners = sorted(self.queue.due_owners(), key=lambda owner: self._turns.get(owner, 0))
        shares: dict[str, int] = {}
        for owner in owners:
            share = min(limit, PER_KEY - self._busy[owner])
            if share > 0:
                shares[owner] = share
                limit -= share
        messages = self.queue.claim(shares)
        self._claims += 1
        served = dict.fromkeys((owner for owner, _ in messages), self._claims)
        self._turns = {owner: self._turns.get(owner, 0) for owner in owners} | served
        self._busy.update(owner for owner, _ in messages)
        return messages

    async def send(self, owner: str, member: str) -> None:
        """Send one message; a failure is tried again later. Never raises."""
        try:
            message = await asyncio.to_thread(self._message, owner, member)
            if message is None:
                await asyncio.to_thread(self.queue.drop, owner, member)
                return
            if self._busy[message.host] >= PER_HOST:
                await asyncio.to_thread(self.queue.put_back, owner, member, BUSY_S)
                return
            self._busy[message.host] += 1
            try:
                status, detail = await self._post(message)
            finally:
                self._busy -= Counter({message.host: 1})
            await asyncio.to_thread(self._outcome, message, status, detail)

        except RedisError as error:  # another attempt follows when the claim is over
            logger.warning("Redis: %s", error)
        except Exception:
            logger.exception("webhook of %s failed", member)
        finally:
            self._busy -= Counter({owner: 1})

    def _message(self, owner: str, member: str) -> _Message | None:
        """Return the message; None if the generation was removed meanwhile."""
        generation_id, _, event = member.partition(" ")
        try:
            generation = self.state.get(generation_id)
        except (NotFound, Gone):
            return None
        if generation.webhook is None:
            return None
        body = {
            "type": f"generation.{event}",
            "timestamp": datetime.now(UTC).isoformat(),
            "data": generation.model_dump(mode="json", exclude={"webhook"}),
        }
        return _Message(
            owner,
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
        self.queue.note(
            message.owner,
            message.member,
            delivery=delivery.model_dump_json(),
            status=delivery.status,
            next_at=next_at,
        )
        logger.info("webhook %s: %s", delivery.status, message.member, extra={"attempts": attempts})


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
    sender = Sender(redis, settings)
    if settings.metrics_port is not None:
        where = settings.metrics_port, settings.metrics_address
        expose(CollectorRegistry(), *where, healthy=sender.heartbeat.is_alive)
    await sender.run(stop)
