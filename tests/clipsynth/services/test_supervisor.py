"""What `clipsynth serve` does with its children, and what a worker says that cannot load its model."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time

import pytest
import torch
from prometheus_client import CollectorRegistry

from clipsynth.errors import ModelUnusable, ServeError
from clipsynth.services import supervisor
from clipsynth.services.metrics_server import SILENT_S, Heartbeat, expose
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from models.bundle import Manifest
from tests.support.service import free_port
from worker.main import model_info, run


def test_a_config_error_ends_serve_only_at_the_first_start(monkeypatch):
    code = [0]

    def start(*_, **__):
        return subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({code[0]})"])

    monkeypatch.setattr(supervisor, "start_child", start)
    monkeypatch.setattr(supervisor, "MIN_BACKOFF_S", 0.0)
    child = supervisor._Child("worker", {"CLIPSYNTH_MODEL": "here"})
    code[0] = os.EX_CONFIG
    assert wait_until(lambda: child.look_after() or child.starts == 3, timeout_s=20)
    child.process.wait()
    child = supervisor._Child("worker", {"CLIPSYNTH_MODEL": "here"})
    child.process.wait()
    with pytest.raises(ServeError, match="cannot use the model here"):
        child.look_after()


def test_api_and_worker_have_separate_metrics_ports():
    assert supervisor._metrics_ports(None) == {}
    ports = {"api": "9100", "worker": "9101", "janitor": "9102", "webhooks": "9103"}
    assert supervisor._metrics_ports(9100) == ports
    server = expose(CollectorRegistry(), 0, healthy=lambda: True)
    with pytest.raises(ServeError, match=f"CLIPSYNTH_METRICS_PORT {server.server_port}"):
        expose(CollectorRegistry(), server.server_port, healthy=lambda: True)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("error", "told"),
    [(torch.OutOfMemoryError("CUDA out of memory"), ServeError), (RuntimeError("shapes"), ModelUnusable)],
)
def test_a_worker_restarts_without_memory_not_without_a_model(redis_url, tmp_path, error, told):
    def load(_):
        raise error

    with pytest.raises(ServeError, match=str(error)) as raised:
        run(Settings(redis_url=redis_url, data_dir=tmp_path), model_info(Manifest("tiny", 0.5, 5.0)), load)
    assert raised.type is told


def test_the_data_folder_is_private(tmp_path):
    made, found = tmp_path / "new" / "data", tmp_path / "found"
    found.mkdir(mode=0o755)
    for folder in (made, found):
        supervisor.lock_data_dir(folder).close()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_metrics_are_not_on_more_addresses_than_the_api():
    server = expose(CollectorRegistry(), 0, healthy=lambda: True)
    assert server.server_address[0] == "127.0.0.1"
    server.shutdown()
    server.server_close()
    assert Settings(host="::1").metrics_address == "::1"
    assert Settings(host="::1", metrics_host="0.0.0.0").metrics_address == "0.0.0.0"


@pytest.mark.parametrize("name", ["janitor", "webhooks"])
def test_background_processes_answer_probes(redis_url, tmp_path, name):
    port = free_port()
    own = {
        "REDIS_URL": redis_url,
        "DATA_DIR": tmp_path,
        "METRICS_PORT": port,
        "HOST": "127.0.0.1",
        "WEBHOOK_SECRET": "whsec_AAAA",
    }
    environment = os.environ | {f"CLIPSYNTH_{name}": str(value) for name, value in own.items()}
    command = [sys.executable, "-m", "clipsynth.cli", name]
    with subprocess.Popen(command, env=environment) as process:
        healthy = [sys.executable, "-m", "clipsynth.services.healthcheck", f"http://127.0.0.1:{port}/healthz"]
        assert wait_until(lambda: subprocess.run(healthy, check=False).returncode == 0, timeout_s=60)
        process.terminate()
        assert process.wait(30) == 0


def test_a_process_whose_loop_stands_is_not_alive(monkeypatch):
    heartbeat = Heartbeat()
    assert heartbeat.is_alive()
    later = time.monotonic() + SILENT_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not heartbeat.is_alive()
    heartbeat.beat()
    assert heartbeat.is_alive()
