"""API keys: who may do what, and that nobody sees another's generations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from app.dependencies import warning
from app.main import create_app
from clipsynth.security.api_keys import create_key, list_keys, revoke_key
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.supervisor import lock_data_dir
from clipsynth.settings import Settings
from clipsynth.storage import KEYS_MARKER
from tests.support.api_client import Service
from tests.support.api_service import check_problem

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def service(redis_url, tmp_path):
    service = Service(Settings(redis_url=redis_url, data_dir=tmp_path, allow_anonymous=False))
    with service.client:
        yield service
    service.redis.close()


def make(service, *scopes):
    """Return the headers of a new key."""
    _, token = create_key(service.redis, "test", scopes or ("generate", "read"))
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "authorization", [None, "Bearer cs_nope", "Bearer", "Basic YTpi", "Bearer cs__", "Bearer é", ""]
)
def test_every_route_needs_a_valid_key(service, authorization):
    headers = {} if authorization is None else {"authorization": authorization.encode()}
    for method, path in (
        ("POST", "/v1/generations"),
        ("GET", "/v1/generations"),
        ("GET", "/v1/generations/gen_x"),
        ("GET", "/v1/generations/gen_x/events"),
        ("GET", "/v1/generations/gen_x/audio/0"),
        ("GET", "/v1/generations/gen_x/spectrogram/0"),
        ("GET", "/v1/generations/gen_x/peaks/0"),
        ("GET", "/v1/generations/gen_x/recipe"),
        ("POST", "/v1/generations/gen_x/cancel"),
        ("DELETE", "/v1/generations/gen_x"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
    ):
        response = service.client.request(method, path, headers=headers)
        check_problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    assert [service.client.get(p, headers=headers).status_code for p in ("/healthz", "/readyz")] == [200, 200]


def test_an_emptied_redis_does_not_open_the_api(serve):
    service = serve()
    assert service.client.get("/v1/models").status_code == 200
    headers = make(service)
    assert service.client.get("/v1/models", headers=headers).status_code == 200
    service.redis.flushall()
    for sent in ({}, headers, {"authorization": "Bearer cs_nope"}):
        check_problem(service.client.get("/v1/models", headers=sent), 503, "keys_missing")
    assert service.client.get("/v1/models", headers=make(service)).status_code == 200
    check_problem(service.client.get("/v1/models"), 401, "unauthorized")


def test_keys_may_be_required_before_the_first_one(serve):
    service = serve(require_keys=True)
    check_problem(service.client.get("/v1/models"), 503, "keys_missing")
    assert service.client.get("/healthz").status_code == 200
    headers = make(service)
    check_problem(service.client.get("/v1/models"), 401, "unauthorized")
    assert service.client.get("/v1/models", headers=headers).status_code == 200


def test_a_revoked_key_is_rejected(service):
    headers = make(service)
    assert service.post(**headers).status_code == 202
    revoke_key(service.redis, list_keys(service.redis)[0].id)
    check_problem(service.post(**headers), 401, "unauthorized")


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: t + "A", lambda t: t[3:], lambda t: t.upper()]
)
def test_an_almost_right_key_is_rejected(service, change):
    token = make(service)["authorization"].removeprefix("Bearer ")
    check_problem(service.post(authorization=f"Bearer {change(token)}"), 401, "unauthorized")


def test_scopes_limit_what_a_key_may_do(service):
    generate, read, admin = make(service, "generate"), make(service, "read"), make(service, "admin")
    get = service.client.get
    assert [service.post(**h).status_code for h in (generate, read, admin)] == [202, 403, 202]
    assert [get("/v1/generations", headers=h).status_code for h in (generate, read, admin)] == [403, 200, 200]
    assert [get("/metrics", headers=h).status_code for h in (generate, read, admin)] == [403, 403, 200]
    check_problem(service.post(**read), 403, "forbidden")


def test_a_key_sees_only_its_own_generations(service):
    mine, other = make(service), make(service)
    location = service.post(**mine).headers["location"]
    theirs = service.post(**other).headers["location"]
    for method, path in (
        ("GET", location),
        ("GET", f"{location}/events"),
        ("GET", f"{location}/audio/0"),
        ("GET", f"{location}/spectrogram/0"),
        ("GET", f"{location}/peaks/0"),
        ("GET", f"{location}/recipe"),
        ("POST", f"{location}/cancel"),
        ("DELETE", location),
    ):
        check_problem(service.client.request(method, path, headers=other), 404, "not_found")
    for headers, seen in ((mine, location), (other, theirs)):
        page = service.client.get("/v1/generations", headers=headers).json()["data"]
        assert [g["links"]["self"] for g in page] == [seen]
    assert service.client.delete(location, headers=mine).status_code == 204
    check_problem(service.client.get(location, headers=mine), 410, "gone")
    check_problem(service.client.get(location, headers=other), 404, "not_found")


def test_idempotency_keys_are_of_one_api_key(service):
    mine, other = make(service), make(service)
    first, again, third = (
        service.post(**h, **{"idempotency-key": "k"}).json()["id"] for h in (mine, mine, other)
    )
    assert first == again != third


def test_a_key_is_not_in_redis(service):
    _, _, secret = make(service)["authorization"].split("_", 2)  # there may be more of them in it
    kept = service.redis.hvals("clipsynth:keys")
    assert kept
    assert all(secret.encode() not in v for v in kept)


@pytest.mark.parametrize(
    ("host", "allow", "with_keys", "status"),
    [
        ("127.0.0.1", None, False, 202),
        ("::1", None, False, 202),
        ("localhost", None, False, 202),
        ("127.0.0.1", None, True, 401),
        ("127.0.0.1", False, False, 401),
        ("127.0.0.1", True, True, 202),
        ("0.0.0.0", None, False, 401),
        ("0.0.0.0", True, False, 202),
        ("example.org", None, False, 401),
    ],
)
def test_anonymous_access_depends_on_host_keys_and_setting(
    service, redis_url, tmp_path, host, allow, with_keys, status
):
    if with_keys:
        make(service)
    settings = Settings(redis_url=redis_url, data_dir=tmp_path, host=host, allow_anonymous=allow)
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        assert client.post("/v1/generations", json={"prompt": "a"}).status_code == status


def test_an_open_service_logs_a_warning():
    assert "ALLOW_ANONYMOUS" in warning(Settings(host="0.0.0.0", allow_anonymous=True))
    assert "keys create" in warning(Settings())
    assert warning(Settings(host="0.0.0.0")) is None


def keys(data_dir, *arguments, redis_url=""):
    environment = {**os.environ, "CLIPSYNTH_DATA_DIR": str(data_dir)}
    if redis_url:
        environment["CLIPSYNTH_REDIS_URL"] = redis_url
    command = [sys.executable, "-m", "clipsynth.cli", "keys", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", ["/v1/generations", "/v1/estimate", "/v1/replay", "/v1/sound-generation"])
def test_the_key_is_checked_before_the_body(service, path):
    bad = {"content": b"{", "headers": {"content-type": "application/json"}}
    check_problem(service.client.post(path, **bad), 401, "unauthorized")
    bad["headers"] |= make(service)
    check_problem(service.client.post(path, **bad), 400, "invalid_body")


def test_the_command_line_makes_keys_before_a_first_start(service, redis_url, tmp_path):
    made = keys(tmp_path / "fresh", "create", "me", "--scope", "read")
    assert (made.returncode, made.stdout[:3]) == (0, "cs_"), made.stderr
    listed = keys(tmp_path / "fresh", "list").stdout
    assert (listed.split()[3:], listed.split()[0]) == (["read", "me"], made.stdout.split("_")[1])
    assert keys(tmp_path / "fresh", "revoke", listed.split()[0]).returncode == 0
    assert "revoked" in keys(tmp_path / "fresh", "list").stdout
    assert (tmp_path / "fresh" / "results" / KEYS_MARKER).is_file()
    assert "keys list" in keys(tmp_path / "fresh", "revoke", "nobody").stderr
    assert "no scope" in keys(tmp_path / "fresh", "create", "me", "--scope", "all").stderr
    token = keys(tmp_path, "create", "me", redis_url=redis_url).stdout.strip()
    assert service.post(authorization=f"Bearer {token}").status_code == 202


@pytest.mark.service
def test_keys_are_made_in_the_redis_of_a_running_serve(tmp_path):
    with lock_data_dir(tmp_path) as lock:
        server = EmbeddedRedis(tmp_path, lock=lock)
        made = keys(tmp_path, "create", "me")
        with Redis.from_url(server.url) as redis:
            assert [key.name for key in list_keys(redis)] == ["me"], made.stderr
        server.stop()
        assert "CLIPSYNTH_DATA_DIR" in keys(tmp_path, "list").stderr  # taken, and no Redis answers
