"""Measure what one key's attacks cost another key.

Run: python -m benchmarks.attack [--seconds 60] [--attack NAME …]

Another key posts a generation and polls it once, ten times a second; a probe asks `/healthz` as often. Each
attack runs in a service of its own. Prints a table; `all` is every attack at once, compared with the same
number of plain requests.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import typer

from benchmarks.attack.attackers import ATTACKS
from benchmarks.attack.wire import Target
from benchmarks.load.service import ServiceProcesses, running, simulated_worker
from clipsynth.security.api_keys import create_key

EACH_S = 0.1
REST_S = 25.0
FEW_FILES = 220
HEADER = (
    "| attack | requests | `/healthz`, worst ms | another key: POST + poll p95, ms | failed "
    "| its webhooks, worst s | API, MB: before, most, after | Redis, MB |"
)


@dataclass
class Seen:
    """What another key and a probe notice, in seconds and bytes."""

    health_s: list[float] = field(default_factory=list)
    post_s: list[float] = field(default_factory=list)
    failed: int = 0
    rss: list[int] = field(default_factory=list)
    redis: list[int] = field(default_factory=list)
    webhooks_s: list[float] = field(default_factory=list)

    def row(self, name: str, sent: int) -> str:
        def worst(values: list[float]) -> float:
            return max(values, default=float("nan"))

        p95 = float(np.quantile(self.post_s or [float("nan")], 0.95))
        mb = [value / 1e6 for value in (self.rss[0], max(self.rss), self.rss[-1])]
        cells = [
            name,
            sent,
            f"{1000 * worst(self.health_s):.0f}",
            f"{1000 * p95:.0f}",
            f"{self.failed} of {len(self.post_s)}",
            f"{worst(self.webhooks_s):.1f}",
            ", ".join(f"{value:.0f}" for value in mb),
            f"{max(self.redis) / 1e6:.1f}",
        ]
        return f"| {' | '.join(map(str, cells))} |"


async def _probe(port: int, seen: Seen, until: float) -> None:
    while time.monotonic() < until:
        began = time.monotonic()
        await Target(port, "").ask("GET", "/healthz")
        seen.health_s.append(time.monotonic() - began)
        await asyncio.sleep(max(0.0, EACH_S - seen.health_s[-1]))


async def _use(target: Target, seen: Seen, until: float, hook_port: int) -> None:
    """Post and poll as a client without bad intentions; each tenth request has a webhook."""
    n = 0
    while time.monotonic() < until:
        began = time.monotonic()
        n += 1
        webhook = {"webhook_url": f"http://127.0.0.1:{hook_port}/"} if n % 10 == 0 else {}
        status, answer = await target.post(prompt="a dog", **webhook)
        if status == 202:
            status, _ = await target.ask("GET", f"/v1/generations/{json.loads(answer)['id']}")
        seen.failed += status != 200
        seen.post_s.append(time.monotonic() - began)
        await asyncio.sleep(max(0.0, EACH_S - seen.post_s[-1]))


async def _watch(service: ServiceProcesses, seen: Seen, until: float) -> None:
    while time.monotonic() < until:
        seen.rss.append(service.rss())
        seen.redis.append((await asyncio.to_thread(service.redis.info, "memory"))["used_memory"])
        await asyncio.sleep(0.2)


async def _observe(service: ServiceProcesses, token: str, seconds: float) -> Seen:
    seen, until = Seen(), time.monotonic() + seconds

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length:")
        body = json.loads(await reader.readexactly(int(length.split()[0])))
        seen.webhooks_s.append(time.time() - body["data"]["finished_at"])
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hook, "127.0.0.1", 0)
    hook_port = server.sockets[0].getsockname()[1]
    await asyncio.gather(
        _probe(service.port, seen, until),
        _use(Target(service.port, token), seen, until, hook_port),
        _watch(service, seen, until + REST_S),
    )
    server.close()
    return seen


def run(name: str, kinds: list[str], seconds: float, rate: float = 0.0) -> int:
    """Attack a new service, print a row and return the number of requests sent."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # R7 was found with few open files; the attackers raise their own limit.
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES if kinds == ["readers"] else most, most))
    settings = {"allow_anonymous": False, "webhook_loopback": True, "max_queued": 100_000}
    with running(simulated_worker(0.005), also=("janitor", "webhooks"), **settings) as service:
        tokens = [create_key(service.redis, who, ["generate", "read"])[1] for who in ("greedy", "other")]
        command = [sys.executable, "-m", "benchmarks.attack.attackers", str(service.port), tokens[0]]
        command += [str(seconds), str(rate), *kinds]
        attackers = subprocess.Popen(command, stdout=subprocess.PIPE)
        seen = asyncio.run(_observe(service, tokens[1], seconds + 2))
        said = json.loads(attackers.communicate(timeout=60)[0] or b'{"sent": 0}')
        print(seen.row(name, said["sent"]), flush=True)
        print(f"<!-- {said} -->", file=sys.stderr)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return int(said["sent"])


def main(
    seconds: float = 60.0,
    attack: Annotated[
        list[str] | None, typer.Option(help="Names; by default each, and all together.")
    ] = None,
) -> None:
    """Measure attacks."""
    print(HEADER, "|---|---:|---:|---:|---:|---:|---|---:|", sep="\n")
    kinds = [kind for kind in ATTACKS if kind != "plain"]
    for name in attack or [*kinds, "all"]:
        sent = run(name, kinds if name == "all" else [name], seconds, rate=20.0 if name == "plain" else 0.0)
        if name == "all":
            run("as many plain ones", ["plain"], seconds, rate=max(1.0, sent / seconds))


if __name__ == "__main__":
    typer.run(main)
