"""An upgrade under load: API and worker are replaced one by one behind a proxy. How many requests fail?

    python -m benchmarks.scale.rolling --haproxy /usr/sbin/haproxy --rolls 5

HAProxy (Debian's) has two places for an API. An upgrade starts the new one in the free place, waits until the proxy has it, and sends SIGTERM to
the old one; then the same with the worker. Clients post, and poll what they posted until it ends, with no retry of their own. The model is simulated;
old and new are of the same code. Ends with code 1 unless nothing failed.
"""

from __future__ import annotations

import argparse
import collections
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import httpx

from benchmarks.serving.load import MANIFEST
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.processes import wait_until

CONFIG = """
global
  maxconn 2000
defaults
  mode http
  timeout connect 2s
  timeout client 70s
  timeout server 70s
  timeout check 5s           # an API that is busy is not down
  option http-server-close   # a request never goes out on a connection that its API is about to close
  option redispatch 1
  retries 5
  retry-on conn-failure      # nothing was sent yet: safe for POST too
frontend clients
  bind 127.0.0.1:{front}
  default_backend apis
backend apis
  option httpchk GET /readyz
  default-server check inter 200ms fall 2 rise 1
  server a 127.0.0.1:{a}
  server b 127.0.0.1:{b}
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Installation:
    """Redis, an API, a worker, and a proxy before two places for APIs."""

    def __init__(self, folder: Path, haproxy: str) -> None:
        self.folder, self.redis = folder, EmbeddedRedis(folder)
        self.front, *self.places = free_ports(3)
        self.url = f"http://127.0.0.1:{self.front}"
        config = folder / "haproxy.cfg"
        config.write_text(CONFIG.format(front=self.front, a=self.places[0], b=self.places[1]))
        self.proxy = subprocess.Popen([haproxy, "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
        self.api, self.worker = self.new_api(), self.new_worker()

    def new_api(self) -> subprocess.Popen[bytes]:
        """Start an API in the place that is free and return it once it is ready and the proxy has seen so."""
        self.places.reverse()
        settings = {
            "CLIPSYNTH_REDIS_URL": self.redis.url,
            "CLIPSYNTH_DATA_DIR": str(self.folder),
            "CLIPSYNTH_PORT": str(self.places[0]),
            "CLIPSYNTH_RATE_PER_S": "0",
        }
        process = subprocess.Popen([sys.executable, "-m", "clipsynth.cli", "api"], env=os.environ | settings)
        assert wait_until(lambda: answers(f"http://127.0.0.1:{self.places[0]}/readyz"), timeout_s=60)
        time.sleep(1)  # five health checks of the proxy
        return process

    def new_worker(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.scale.worker", self.redis.url, str(self.folder), "0.01"]
        process = subprocess.Popen(command)
        assert wait_until(lambda: answers(f"{self.url}/v1/models", "ready"), timeout_s=60)
        return process

    def upgrade(self) -> None:
        """Replace the API and the worker, the new one before the old one goes."""
        old, self.api = self.api, self.new_api()
        old.terminate()
        old.wait(60)
        old, self.worker = self.worker, self.new_worker()
        time.sleep(3)  # the new worker takes some of the jobs while the old one still does
        old.terminate()
        old.wait(60)

    def close(self) -> None:
        for process in (self.proxy, self.api, self.worker):
            process.terminate()
            process.wait(60)
        self.redis.stop()


def answers(url: str, word: str = "") -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return word in response.read().decode()
    except (urllib.error.URLError, OSError):
        return False


def be_client(url: str, stop: threading.Event, counts: collections.Counter[str]) -> None:
    """Post and poll until told to stop, and until what was posted has ended."""
    with httpx.Client(base_url=url, timeout=30) as http:
        while not stop.is_set():
            try:
                made = http.post("/v1/generations", json={"prompt": "rain", "model": MANIFEST.name})
                counts[f"POST {made.status_code}"] += 1
                if made.status_code != 202:
                    continue
                status = "queued"
                while status in ("queued", "processing"):
                    time.sleep(0.1)
                    read = http.get(made.headers["location"])
                    counts[f"GET {read.status_code}"] += 1
                    status = read.json()["status"]
                counts[status] += 1
            except (httpx.HTTPError, KeyError, ValueError) as error:
                counts[f"failed: {type(error).__name__}"] += 1


def run(folder: Path, haproxy: str, *, rolls: int, clients: int) -> collections.Counter[str]:
    """Upgrade so many times under load and return what became of the requests."""
    installation = Installation(folder, haproxy)
    stop, counts = threading.Event(), collections.Counter[str]()
    threads = [
        threading.Thread(target=be_client, args=(installation.url, stop, counts)) for _ in range(clients)
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in range(rolls):
            time.sleep(2)
            installation.upgrade()
        time.sleep(2)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
        installation.close()
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--haproxy", default="haproxy")
    parser.add_argument("--rolls", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = run(Path(name), arguments.haproxy, rolls=arguments.rolls, clients=arguments.clients)
    print(dict(found))
    raise SystemExit(set(found) != {"POST 202", "GET 200", "succeeded"})
