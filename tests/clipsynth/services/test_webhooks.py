"""Webhooks from the request to the address that is told, and to what the resource says of it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys

import pytest

from clipsynth.jobs.webhook_queue import WebhookQueue
from clipsynth.redis_keys import WEBHOOK_TURNS, WEBHOOKS, WEBHOOKS_OF
from clipsynth.schemas.generation import Status
from clipsynth.security.api_keys import create_key
from clipsynth.services import webhooks
from clipsynth.services.processes import wait_until
from clipsynth.services.webhooks import DELAYS_S, Sender
from clipsynth.settings import Settings
from tests.support.api_service import check_problem
from tests.support.http_server import listening

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


class Hooks:
    def __init__(self, service, settings):
        self.service, self.sender = service, Sender(service.redis, settings)

    def post(self, url, headers=None, **body):
        body = {"prompt": "a", "webhook_url": url, **body}
        return self.service.client.post("/v1/generations", json=body, headers=headers)

    def end(self, response, status=Status.SUCCEEDED):
        assert response.status_code == 202, response.text
        self.service.state.start(response.json()["id"], batched_with_others=False)
        self.service.state.transition(response.json()["id"], status)

    def send(self):
        """Tell all that is due, and return how many that were."""
        due = self.sender.due(100)
        for owner, member in due:
            asyncio.run(self.sender.send(owner, member))
        return len(due)

    def make_due(self):
        redis = self.service.redis
        for owner in map(bytes.decode, redis.zrange(WEBHOOK_TURNS, 0, -1)):
            queue = WEBHOOKS_OF + owner
            redis.zadd(queue, dict.fromkeys(redis.zrange(queue, 0, -1), 0))
            redis.zadd(WEBHOOK_TURNS, {owner: 0})

    def deliveries(self, response, headers=None):
        resource = self.service.client.get(response.headers["location"], headers=headers).json()
        return resource["webhook"]["deliveries"]


@pytest.fixture
def hooks(serve, redis_url, tmp_path):
    options = {"webhook_secret": SECRET, "webhook_loopback": True, "allow_anonymous": True}
    return Hooks(serve(**options), Settings(redis_url=redis_url, data_dir=tmp_path, **options))


def verify(request, secret):
    """Check a message as the Standard Webhooks specification says, and return its id and body."""
    headers, body = {k.lower(): v for k, v in request[1].items()}, request[2]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    return headers["webhook-id"], json.loads(body)


def test_the_end_is_sent_once_and_signed(hooks, heard):
    made = hooks.post(heard.url, metadata={"project": "demo"})
    assert hooks.send() == 0
    hooks.end(made)
    assert (hooks.send(), hooks.send()) == (1, 0)
    message_id, body = verify(heard.requests[0], SECRET)
    assert (heard.requests[0][0], body["type"]) == ("/hook?x=1", "generation.completed")
    assert (body["data"]["id"], body["data"]["status"]) == (made.json()["id"], "succeeded")
    assert body["data"]["metadata"] == {"project": "demo"}
    assert made.json()["id"] in message_id
    (delivery,) = hooks.deliveries(made)
    assert (delivery["event"], delivery["status"], delivery["attempts"]) == ("completed", "delivered", 1)
    assert (
        'clipsynth_webhook_deliveries_total{outcome="delivered"} 1.0'
        in hooks.service.client.get("/metrics").text
    )


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELED, Status.EXPIRED])
def test_every_final_status_is_sent(hooks, heard, status):
    hooks.end(hooks.post(heard.url), status)
    hooks.send()
    assert verify(heard.requests[0], SECRET)[1]["data"]["status"] == status


def test_the_start_is_sent_once_if_requested(hooks, heard):
    made = hooks.post(heard.url, webhook_events=["started", "completed"])
    for _ in range(2):  # its worker is lost, and it starts again
        hooks.service.state.start(made.json()["id"], batched_with_others=False)
        hooks.service.state.abandon(made.json()["id"])
    hooks.send()
    hooks.end(made)
    hooks.send()
    types = [verify(r, SECRET)[1]["type"] for r in heard.requests]
    assert types == ["generation.started", "generation.completed"]
    assert [d["event"] for d in hooks.deliveries(made)] == ["completed", "started"]


def test_each_key_has_its_own_secret(hooks, heard):
    key, token = create_key(hooks.service.redis, "x", ["generate", "read"])
    headers = {"authorization": f"Bearer {token}"}
    hooks.end(hooks.post(heard.url, headers))
    hooks.send()
    assert key.webhook_secret != SECRET
    verify(heard.requests[0], key.webhook_secret)


def test_a_failed_delivery_is_retried_and_then_given_up(hooks, heard):
    heard.status = 500
    made = hooks.post(heard.url)
    hooks.end(made)
    for n, delay_s in enumerate(DELAYS_S):
        assert (hooks.send(), hooks.send()) == (1, 0)
        (delivery,) = hooks.deliveries(made)
        assert (delivery["status"], delivery["attempts"], delivery["detail"]) == (
            "pending",
            n + 1,
            "answered 500",
        )
        waits = delivery["next_attempt_at"] - delivery["last_attempt_at"]
        assert 0.8 * delay_s <= waits <= 1.2 * delay_s
        hooks.make_due()
    hooks.send()
    (delivery,) = hooks.deliveries(made)
    assert (delivery["status"], delivery["attempts"], delivery["next_attempt_at"]) == ("failed", 6, None)
    assert len({verify(r, SECRET)[0] for r in heard.requests}) == 1
    hooks.make_due()
    assert hooks.send() == 0


@pytest.mark.parametrize(("status", "outcome"), [(204, "delivered"), (302, "pending"), (410, "failed")])
def test_the_response_status_decides_the_delivery(hooks, heard, status, outcome):
    heard.status, heard.headers, heard.body = status, {"location": heard.url, "content-length": "0"}, b""
    made = hooks.post(heard.url)
    hooks.end(made)
    hooks.send()
    assert hooks.deliveries(made)[0]["status"] == outcome
    assert len(heard.requests) == 1


def test_a_killed_senders_message_is_sent_by_another(hooks, heard):
    hooks.end(hooks.post(heard.url))
    assert len(hooks.sender.due(10)) == 1
    assert hooks.send() == 0
    hooks.make_due()  # its claim is over
    assert hooks.send() == 1


def test_a_deleted_generation_sends_no_webhook(hooks, heard):
    made = hooks.post(heard.url)
    hooks.end(made)
    hooks.service.client.delete(made.headers["location"])
    hooks.send()
    assert heard.requests == []
    left = (WEBHOOK_TURNS, f"{WEBHOOKS_OF}anonymous", f"clipsynth:gen:{made.json()['id']}")
    assert not hooks.service.redis.exists(*left)


def test_the_slow_hosts_of_a_key_delay_no_other_key(hooks, heard, monkeypatch):
    monkeypatch.setattr(webhooks, "POLL_S", 0.01)
    tokens = [create_key(hooks.service.redis, name, ["generate"])[1] for name in "ab"]
    greedy, other = ({"authorization": f"Bearer {token}"} for token in tokens)

    async def run():
        stop = asyncio.Event()
        sending = asyncio.create_task(hooks.sender.run(stop))
        while len(heard.requests) < 1:
            await asyncio.sleep(0.01)
        stop.set()
        sent = [len(slow.requests) for slow in slows]
        for slow in slows:
            slow.gate.set()
        await sending
        return sent

    with listening() as one, listening() as two:
        slows = [one, two]
        for slow in slows:
            slow.gate.clear()
            for _ in range(40):
                hooks.end(hooks.post(slow.url, greedy))
        hooks.end(hooks.post(heard.url, other))
        assert max(asyncio.run(run())) <= webhooks.PER_HOST
        assert 2 * webhooks.PER_HOST <= webhooks.PER_KEY < webhooks.MAX_SENDING


def test_messages_of_an_earlier_version_are_sent(hooks, heard):
    made = hooks.post(heard.url)
    hooks.end(made)
    redis = hooks.service.redis
    (member,) = redis.zrange(f"{WEBHOOKS_OF}anonymous", 0, -1)
    redis.delete(f"{WEBHOOKS_OF}anonymous", WEBHOOK_TURNS)
    redis.zadd(WEBHOOKS, {member: 0, "gen_0 completed": 0})
    assert hooks.send() == 1
    assert not redis.exists(WEBHOOKS, WEBHOOK_TURNS)


def test_an_idle_sender_asks_redis_one_question_a_look(hooks, monkeypatch):
    asked = []
    ask = hooks.service.redis.execute_command
    monkeypatch.setattr(
        hooks.service.redis,
        "execute_command",
        lambda *args, **kw: (asked.append(args[0]), ask(*args, **kw))[1],
    )
    queue = WebhookQueue(hooks.service.redis)
    for _ in range(5):
        assert queue.due_owners() == []
    assert asked.count("ZRANGE") == 5
    assert len(asked) <= 8


def test_private_webhook_addresses_are_rejected(serve, redis_url, tmp_path):
    settings = {"webhook_secret": SECRET}
    hooks = Hooks(serve(**settings), Settings(redis_url=redis_url, data_dir=tmp_path, **settings))
    for url in ("http://example.org/", "https://127.0.0.1/", "https://[::ffff:10.0.0.1]/", "gopher://x/"):
        check_problem(hooks.post(url), 422, "invalid_request")
    made = hooks.post("https://localhost/")
    hooks.end(made)
    hooks.send()
    assert hooks.deliveries(made)[0]["detail"] == "the address is not of the public internet"


def test_without_a_secret_webhooks_are_rejected(serve):
    hooks = Hooks(serve(), Settings())
    check_problem(hooks.post("https://example.org/"), 422, "invalid_request")


@pytest.mark.parametrize("events", [[], ["ended"], ["completed"] * 3, "completed"])
def test_webhook_events_are_a_closed_set(hooks, heard, events):
    check_problem(hooks.post(heard.url, webhook_events=events), 422, "invalid_request")


def test_the_webhooks_command_sends_until_stopped(hooks, heard, redis_url):
    environment = {
        **os.environ,
        "CLIPSYNTH_REDIS_URL": redis_url,
        "CLIPSYNTH_WEBHOOK_SECRET": SECRET,
        "CLIPSYNTH_WEBHOOK_LOOPBACK": "1",
    }
    command = [sys.executable, "-m", "clipsynth.cli", "webhooks"]
    with subprocess.Popen(command, env=environment) as sender:
        hooks.end(hooks.post(heard.url))
        assert wait_until(lambda: bool(heard.requests), timeout_s=30)
        sender.send_signal(signal.SIGTERM)
        assert sender.wait(30) == 0


def test_an_invalid_secret_ends_the_webhooks_command(redis_url):
    environment = {**os.environ, "CLIPSYNTH_REDIS_URL": redis_url, "CLIPSYNTH_WEBHOOK_SECRET": "hush!"}
    command = [sys.executable, "-m", "clipsynth.cli", "webhooks"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, "whsec_" in ended.stderr) == (1, True)
