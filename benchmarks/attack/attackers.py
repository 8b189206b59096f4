"""Attack a service with ten clients of one key.

Run: python -m benchmarks.attack.attackers PORT TOKEN SECONDS RATE ATTACK…

Prints one JSON object at the end: the requests sent, and the answers by status. `plain` are requests as the
service wants them, RATE in a second.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from PIL import Image

from benchmarks.attack.wire import Target, hold

CLIENTS = 10
# Seconds for attacks that have begun.
GRACE_S = 5.0
LONG = [{"text": f"{n}" * 1000} for n in range(8)]
Attack = Callable[[Target, int], Awaitable[int]]


async def plain(target: Target, _: int) -> int:
    """Send a request as the service wants it."""
    return (await target.post(prompt="a dog"))[0]


async def names(target: Target, n: int) -> int:
    """R1: 7.9 MB of JSON with 800,000 unknown names."""
    body = "{" + ",".join(f'"{n}{name}":1' for name in range(800_000)) + "}"
    return (await target.ask("POST", "/v1/generations", body[:7_900_000].rpartition(",")[0].encode() + b"}"))[
        0
    ]


async def recipes(target: Target, _: int) -> int:
    """R2: a recipe that names one image 430 times."""
    token = await _recipe(target)
    fields = json.loads(base64.urlsafe_b64decode(token + "=="))
    image = {"text": None, "image_key": fields["image_key"], "image_sha256": fields["image_sha256"]}
    fields |= {"image_key": None, "image_sha256": None, "prompts": [image | {"weight": 1.0}] * 430}
    recipe = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()
    return (await target.ask("POST", "/v1/replay", json.dumps({"recipe": recipe}).encode()))[0]


async def uploads(target: Target, _: int) -> int:
    """R3: three uploads of 50 MB at a time that never end."""
    part = json.dumps({"image": ""})[:-2].encode()
    held = []
    for _ in range(3):
        reader, writer = await target.connect()
        held.append((reader, writer))
        writer.write(
            target.head("POST", "/v1/generations", length=50_000_000, Content_Type="application/json")
        )
        writer.write(part)
        for _ in range(49):
            writer.write(b"A" * 1_000_000)
            try:
                async with asyncio.timeout(5):
                    await writer.drain()
            except (TimeoutError, ConnectionError):
                break
    await hold(held, 20)
    return 0


async def records(target: Target, n: int) -> int:
    """R4: long requests that are canceled at once, and idempotency keys of refused ones."""
    body = json.dumps({"prompts": LONG, "metadata": {f"{k}": "a" * 500 for k in range(16)}})
    status, answer = await target.ask("POST", "/v1/generations", body.encode())
    if status == 202:
        await target.ask("POST", f"/v1/generations/{json.loads(answer)['id']}/cancel")
    refused = json.dumps({"prompt": "a", "duration_s": 9.9, "seed": n, "model": "simulated"}).encode()
    await target.ask("POST", "/v1/generations", refused, Idempotency_Key=f"{n} {time.time()}")
    return status


async def webhooks(target: Target, _: int) -> int:
    """R6: a webhook to an address that never answers."""
    return (await target.post(prompt="a dog", webhook_url=f"http://127.0.0.1:{await _silent_port()}/"))[0]


async def readers(target: Target, _: int) -> int:
    """R7: 23 clients that ask for large files and never read."""
    held = []
    for _ in range(23):
        connection = await target.connect(1)
        connection[0]._transport.pause_reading()  # type: ignore[attr-defined]
        held.append(connection)
        head = target.head("GET", "/docs/static/swagger-ui-bundle.js")
        connection[1].write(head * 5)
    await hold(held, 20)
    return 0


async def streams(target: Target, n: int) -> int:
    """R8: 50 streams of one generation that never ends, with a change every 50 ms."""
    status, answer = await target.post(prompt="a dog", num_inference_steps=200, seed=n)
    if status != 202:
        return status
    held = []
    for _ in range(50):
        connection = await target.connect()
        held.append(connection)
        connection[1].write(target.head("GET", f"/v1/generations/{json.loads(answer)['id']}/events"))
        asyncio.ensure_future(connection[0].read()).add_done_callback(lambda done: done.exception())
    await hold(held, 10)
    return status


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (plain, names, recipes, uploads, records, webhooks, readers, streams)
}
_recipes: list[asyncio.Future[str]] = []
_ports: list[int] = []


def _recipe(target: Target) -> asyncio.Future[str]:
    """Return the recipe of a generation from an image, made once."""
    if not _recipes:
        _recipes.append(asyncio.ensure_future(_make_recipe(target)))
    return _recipes[0]


async def _make_recipe(target: Target) -> str:
    file = io.BytesIO()
    Image.frombytes("RGB", (512, 512), random.Random(0).randbytes(3 * 512 * 512)).save(file, "PNG")
    status, answer = await target.post(image=base64.b64encode(file.getvalue()).decode())
    while status == 202:
        await asyncio.sleep(0.2)
        _, resource = await target.ask("GET", f"/v1/generations/{json.loads(answer)['id']}")
        if resource and (outputs := json.loads(resource)["outputs"]):
            return str(outputs[0]["recipe"])
    return ""


async def _silent_port() -> int:
    """Return the port of a server that takes requests and never answers."""
    if not _ports:
        server = await asyncio.start_server(lambda *_: asyncio.sleep(3600), "127.0.0.1", 0)
        _ports.append(server.sockets[0].getsockname()[1])
    return _ports[0]


async def attack(port: int, token: str, seconds: float, rate: float, kinds: list[str]) -> dict[str, object]:
    """Have ten clients do these attacks in turns; return what was sent and answered."""
    target, statuses = Target(port, token), Counter[int]()
    until = time.monotonic() + seconds
    pause_s = CLIENTS / rate if rate else 0.0

    async def client(number: int) -> None:
        for n, kind in enumerate(itertools.islice(itertools.cycle(kinds), number, None)):
            began = time.monotonic()
            if began > until:
                return
            try:
                statuses[await ATTACKS[kind](target, number * 100_000 + n)] += 1
            except OSError:
                statuses[0] += 1
            await asyncio.sleep(max(0.0, pause_s - (time.monotonic() - began)))

    tasks = [asyncio.ensure_future(client(n)) for n in range(CLIENTS)]
    await asyncio.wait(tasks, timeout=seconds + GRACE_S)
    return {"sent": target.sent, "statuses": {str(k): v for k, v in statuses.items()}}


if __name__ == "__main__":
    os.nice(19)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    print(
        json.dumps(
            asyncio.run(attack(int(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:5]), sys.argv[5:]))
        )
    )
    os._exit(0)  # with its connections
