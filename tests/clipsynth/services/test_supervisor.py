"""What `clipsynth serve` does with its children, and what a worker says that cannot load its model."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from prometheus_client import CollectorRegistry

from clipsynth.errors import ModelUnusable, ServeError
from clipsynth.services import supervisor
from clipsynth.services.metrics_server import expose
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from models.bundle import Manifest
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
    assert supervisor._metrics_ports(9100) == {"api": "9100", "worker": "9101"}
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
