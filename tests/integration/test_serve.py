"""`clipsynth serve` as a user starts it, with the tiny bundle."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from clipsynth.redis_keys import EXPIRY
from clipsynth.services.embedded_redis import running_url
from clipsynth.services.processes import wait_until
from tests.support.service import TIMEOUT_S, Serve


def is_running(pid):
    """Whether a process is there, and is more than a zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_serve_makes_a_sound(served):
    service, _ = served
    location = service.post()
    assert service.wait_for_end(location) == "succeeded"
    assert service.http.get(f"{location}/audio/0").content[:4] == b"RIFF"


def test_api_and_worker_log_the_same_request_id(served):
    service, _ = served
    body = {"prompt": "a dog", "duration_s": 0.5}
    made = service.http.post("/v1/generations", json=body, headers={"X-Request-Id": "mine-1"})
    generation_id = made.json()["id"]
    service.wait_for_end(made.headers["location"])

    def of(package):
        return [line for line in service.logged(job_id=generation_id) if line["logger"].startswith(package)]

    assert wait_until(lambda: of("app.") and of("worker."), timeout_s=TIMEOUT_S)
    assert {line["request_id"] for line in of("app.") + of("worker.")} == {"mine-1"}
    assert [line["route"] for line in service.logged(request_id="mine-1", logger="clipsynth.access")] == [
        "/v1/generations"
    ]


README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SCRIPTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(
    ("word", "made", "last_line"),
    [
        ("clipsynth.client", ["dog.wav"], []),
        ("httpx", ["dog-0.wav"], ["succeeded None"]),
        ("ClipSynthPipeline", [], []),
    ],
)
def test_the_scripts_of_the_readme_run(served, tiny_bundle, tmp_path, word, made, last_line):
    service, _ = served
    [script] = [script for script in SCRIPTS if word in script]
    script = script.replace("http://localhost:8000", service.url)
    script = script.replace("checkpoints/demo", str(tiny_bundle)).replace("duration_s=4.0", "duration_s=1.0")
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[-1:] == last_line
    assert [(tmp_path / name).read_bytes()[:4] for name in made] == [b"RIFF"] * len(made)


def test_two_run_side_by_side_but_not_on_the_same_data(served, tiny_bundle, tmp_path):
    _, data_dir = served
    refused = Serve(tiny_bundle, data_dir)
    assert refused.process.wait(TIMEOUT_S) == 1
    assert "CLIPSYNTH_DATA_DIR" in refused.log.read_text()
    other = Serve(tiny_bundle, tmp_path / "other")
    assert wait_until(lambda: other.answers("/readyz"), timeout_s=TIMEOUT_S)
    other.stop()


def test_sighup_reloads_the_bundle(served):
    service, _ = served
    service.wait_for_worker()
    worker = service.pid(" worker")
    os.kill(worker, signal.SIGHUP)
    assert wait_until(lambda: "model tiny is now version" in service.log.read_text(), timeout_s=TIMEOUT_S)
    assert service.wait_for_end(service.post()) == "succeeded"
    assert service.pid(" worker") == worker


def test_a_killed_redis_keeps_accepted_jobs(served):
    service, _ = served
    first, second = service.post(num_inference_steps=200), service.post()
    killed = service.pid("redis-server")
    os.kill(killed, signal.SIGKILL)
    assert wait_until(lambda: service.pid("redis-server") not in (None, killed), timeout_s=TIMEOUT_S)
    assert [service.wait_for_end(location) for location in (first, second)] == ["succeeded"] * 2


def test_an_expired_generation_is_removed(served):
    service, data_dir = served
    location = service.post()
    service.wait_for_end(location)
    generation_id = location.rpartition("/")[2]
    folder = data_dir / "results" / generation_id
    assert folder.is_dir()
    with Redis.from_url(running_url(data_dir)) as redis:
        assert redis.zadd(EXPIRY, {generation_id: 1}, xx=True, ch=True) == 1
    assert wait_until(lambda: service.http.get(location).status_code == 410, timeout_s=TIMEOUT_S)
    assert wait_until(lambda: not folder.exists(), timeout_s=TIMEOUT_S)


def test_a_restarted_serve_finishes_accepted_jobs(tiny_bundle, tmp_path):
    killed = Serve(tiny_bundle, tmp_path / "data")
    killed.wait_for_worker()
    locations = [killed.post(num_inference_steps=200), killed.post()]
    children = killed.children()
    killed.process.kill()
    again = Serve(tiny_bundle, tmp_path / "data")
    killed.process.wait()
    killed.http.close()
    assert [again.wait_for_end(location) for location in locations] == ["succeeded"] * 2
    again.stop()
    # Its worker was at work when Redis went for good: it must not wait for ever to tell what it made.
    assert wait_until(lambda: not any(map(is_running, children)), timeout_s=TIMEOUT_S)


def test_serve_ends_and_names_a_missing_part(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "vocoder")
    service = Serve(tmp_path / "broken", tmp_path / "data")
    assert service.process.wait(TIMEOUT_S) == os.EX_CONFIG
    message = service.log.read_text()
    assert "vocoder" in message
    assert message.splitlines()[-1].startswith("error: vocoder: ")
