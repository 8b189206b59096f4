"""The first minute with `clipsynth serve`: a few lines, a sound, and one line where it cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.processes import wait_until
from tests.support.service import TIMEOUT_S, free_port


def start(bundle, data_dir, *options, **variables):
    """Start `serve` as on a terminal, with its output in pipes."""
    environment = os.environ | {"CLIPSYNTH_DATA_DIR": str(data_dir)} | variables
    environment.pop("CLIPSYNTH_REDIS_URL", None)
    command = [sys.executable, "-m", "clipsynth.cli", "serve", "--model", str(bundle), *options]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def refusal(bundle, data_dir, *options, **variables):
    """Return the one line with which `serve` refuses to start."""
    process = start(bundle, data_dir, *options, **variables)
    printed, error = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode in (1, os.EX_CONFIG)
    assert printed == ""
    [line] = error.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def taken():
    """A port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_five_lines_and_a_sound_from_the_first_one_on(tiny_bundle, tmp_path):
    process = start(tiny_bundle, tmp_path / "data", "--port", str(port := free_port()))
    try:
        lines = [process.stdout.readline().rstrip()]
        assert lines == [f"API at http://127.0.0.1:{port}, loading model tiny"]
        response = httpx.post(
            f"http://127.0.0.1:{port}/v1/generations",
            json={"prompt": "a dog barking", "duration_s": 0.5},
            headers={"Prefer": "wait=60", "Accept": "audio/wav"},
            timeout=TIMEOUT_S,
        )
        assert (response.status_code, response.content[:4]) == (200, b"RIFF"), response.text
        lines += [process.stdout.readline().rstrip() for _ in range(4)]
        assert f"curl -s -o dog.wav http://127.0.0.1:{port}/v1/generations" in lines[1]
        assert lines[3].startswith("model tiny on cpu, ")
        assert lines[4] == "ready"
        log = (tmp_path / "data" / "log" / "worker.log").read_text()
        assert "worker ready" in log
        assert "it/s" not in log  # no progress bar
        socket_dir = Path((tmp_path / "data" / "redis.url").read_text().removeprefix("unix://")).parent
        assert socket_dir.is_dir()
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # under nohup
        process.send_signal(signal.SIGTERM if is_ignored else signal.SIGHUP)
        printed, error = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, printed, error) == (0, "", "")
        assert not socket_dir.exists()
    finally:
        process.kill()
        process.wait()


def test_a_taken_port_is_one_line(tiny_bundle, tmp_path, taken):
    line = refusal(tiny_bundle, tmp_path / "data", "--port", str(taken))
    assert f"port {taken}: Address already in use; choose another port with --port" in line
    line = refusal(
        tiny_bundle, tmp_path / "data", "--port", str(free_port()), CLIPSYNTH_METRICS_PORT=str(taken)
    )
    assert f"port {taken}: Address already in use" in line
    assert not (tmp_path / "data").exists()


def test_the_api_alone_refuses_a_taken_port(redis_url, tmp_path, taken):
    environment = os.environ | {
        "CLIPSYNTH_REDIS_URL": redis_url,
        "CLIPSYNTH_DATA_DIR": str(tmp_path),
        "CLIPSYNTH_PORT": str(taken),
        "CLIPSYNTH_ALLOW_ANONYMOUS": "0",
    }
    command = [sys.executable, "-m", "clipsynth.cli", "api"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert [line[:7] for line in result.stderr.splitlines()] == ["error: "]


@pytest.mark.parametrize(
    ("options", "variables", "part"),
    [
        (["--port", "70000"], {}, "CLIPSYNTH_PORT: Input should be less than or equal to 65535"),
        ([], {"CLIPSYNTH_METRICS_PORT": "-1"}, "CLIPSYNTH_METRICS_PORT: "),
        (["--host", "no.such.host.invalid"], {}, "cannot listen on no.such.host.invalid, port 8000: "),
        (["--model", "/no/such/bundle"], {}, "/no/such/bundle"),
        ([], {"CLIPSYNTH_STORAGE_URL": "tape://results"}, "CLIPSYNTH_STORAGE_URL: "),
        ([], {"CLIPSYNTH_LEASE_S": "soon"}, "CLIPSYNTH_LEASE_S: "),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(tiny_bundle, tmp_path, options, variables, part):
    if "--host" not in options and "70000" not in options:
        options = [*options, "--port", str(free_port())]
    assert part in refusal(tiny_bundle, tmp_path / "data", *options, **variables)


@pytest.mark.parametrize("blocked", ["data", "data/redis", "data/results", "data/log", "data/serve.lock"])
def test_a_data_folder_that_cannot_be_used_is_one_line(tiny_bundle, tmp_path, blocked):
    """A file stands where a folder is needed, or the other way round: as root, rights stop nothing."""
    path = tmp_path / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    if blocked.endswith(".lock"):
        path.mkdir()
    else:
        path.touch()
    line = refusal(tiny_bundle, tmp_path / "data", "--port", str(free_port()))
    assert f"the data folder {tmp_path / 'data'} cannot be used" in line


def test_the_socket_of_a_killed_redis_is_removed(tmp_path):
    killed = EmbeddedRedis(tmp_path)
    folder = Path(killed.url.removeprefix("unix://")).parent
    killed.process.kill()
    killed.process.wait()
    again = EmbeddedRedis(tmp_path)
    assert not folder.exists()
    again.stop()


def test_a_redis_that_cannot_start_says_why(tmp_path):
    (tmp_path / "redis" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "redis" / "appendonlydir" / "appendonly.aof.manifest").write_text("spoilt")
    with pytest.raises(Exception, match=r"did not start: .*manifest"):
        EmbeddedRedis(tmp_path)
    assert wait_until(lambda: not (tmp_path / "redis.url").exists(), timeout_s=1)
