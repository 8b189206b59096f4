"""Hosts on one machine: network namespaces with addresses on one bridge. Needs root and Linux."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SUBNET = "10.213.7"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Host:
    """A namespace; `link` is the end of its cable at the bridge."""

    name: str
    address: str
    link: str

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def plug(self, *, in_: bool) -> None:
        """Plug the cable in, or pull it: packets are dropped without an error."""
        ip("link", "set", self.link, "up" if in_ else "down")


@contextmanager
def network(*names: str, bridge: str = "clipsynth0") -> Iterator[dict[str, Host]]:
    """Yield hosts that reach each other and, at `SUBNET`.1, this machine, but nothing else."""
    ip("link", "add", bridge, "type", "bridge")
    hosts: dict[str, Host] = {}
    try:
        ip("addr", "add", f"{SUBNET}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for name, number in zip(names, itertools.count(2), strict=False):
            host = Host(f"clipsynth-{name}", f"{SUBNET}.{number}", f"cs-{number}")
            ip("netns", "add", host.name)
            hosts[name] = host
            ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            ip("link", "set", host.link, "master", bridge, "up")
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host.name, "link", "set", device, "up")
        yield hosts
    finally:
        for host in hosts.values():
            # there may be none yet
            subprocess.run(["ip", "link", "del", host.link], capture_output=True)
            ip("netns", "del", host.name)
        ip("link", "del", bridge)
