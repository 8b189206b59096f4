"""`clipsynth serve` as a process, for tests that need the whole service."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import psutil

from clipsynth.services.processes import wait_until

TIMEOUT_S = 120


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Serve:
    def __init__(self, bundle, data_dir):
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        environment = {
            **os.environ,
            "CLIPSYNTH_DATA_DIR": str(data_dir),
            "CLIPSYNTH_LEASE_S": "4",
            "CLIPSYNTH_HEARTBEAT_S": "1",
            "CLIPSYNTH_JANITOR_INTERVAL_S": "0.5",
            "CLIPSYNTH_LOG_FORMAT": "json",
        }
        environment.pop("CLIPSYNTH_REDIS_URL", None)
        command = [
            sys.executable,
            "-m",
            "clipsynth.cli",
            "serve",
            "--port",
            str(port),
            "--model",
            str(bundle),
        ]
        self.log = data_dir.with_suffix(".log")  # not a pipe, which would fill up
        with self.log.open("ab") as stderr:
            self.process = subprocess.Popen(command, env=environment, stderr=stderr)
        self.http = httpx.Client(base_url=self.url, timeout=10)

    def answers(self, path, check=lambda r: True):
        try:
            response = self.http.get(path)
        except httpx.TransportError:
            return False
        return response.status_code == 200 and check(response)

    def wait_for_worker(self):
        assert wait_until(
            lambda: self.answers("/v1/models", lambda r: [m["status"] for m in r.json()] == ["ready"]),
            timeout_s=TIMEOUT_S,
        )

    def post(self, **body):
        response = self.http.post("/v1/generations", json={"prompt": "a dog", "duration_s": 0.5, **body})
        assert response.status_code == 202, response.text
        return response.headers["location"]

    def wait_for_end(self, location):
        assert wait_until(
            lambda: self.answers(location, lambda r: r.json()["status"] not in ("queued", "processing")),
            timeout_s=TIMEOUT_S,
        )
        return self.http.get(location).json()["status"]

    def logged(self, **where):
        """The lines of the JSON log that say so."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if where.items() <= line.items()]

    def children(self):
        """Command lines by process id, after the program's name: a long path must not hide it."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                found[child.pid] = " ".join([child.name(), *child.cmdline()])
        return found

    def pid(self, word):
        return next((pid for pid, line in self.children().items() if word in line), None)

    def stop(self):
        children = self.children()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(TIMEOUT_S) == 0
        self.http.close()
        assert not any(os.path.exists(f"/proc/{pid}") for pid in children)
