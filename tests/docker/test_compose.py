"""docker-compose.yml: as the specification has it, with the images' commands, and safe by default."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose

from clipsynth.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {f"CLIPSYNTH_{name.upper()}" for name in Settings.model_fields}
OURS = ("app", "worker", "janitor", "webhooks")


def read(name, **variables):
    """A compose file with its variables as given, or their defaults."""
    text = (ROOT / name).read_text()
    return yaml.safe_load(re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: variables.get(m[1], m[2]), text))


COMPOSE = read("docker-compose.yml")
SERVICES = COMPOSE["services"]


@pytest.mark.parametrize("name", ["docker-compose.yml", "compose.gpu.yaml"])
def test_compose_files_match_the_specification(name):
    PyCompose.from_json(json.dumps(read(name)))


SNIPPETS = re.findall(
    r"^    services:\n(?:     .*\n)+", (ROOT / "docs/operations.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_documented_compose_snippets_are_valid(snippet):
    """Compose files in the documentation: after the specification, with settings and services that exist."""
    added = yaml.safe_load(snippet)
    PyCompose.from_json(json.dumps(added))
    for name, service in added["services"].items():
        assert service.get("extends", {}).get("service", name) in SERVICES
        assert set(service["environment"]) <= KNOWN


def test_the_docs_have_two_compose_snippets():
    assert len(SNIPPETS) == 2


def test_compose_commands_equal_those_of_the_images():
    for role in ("app", "worker"):
        dockerfile = (ROOT / f"docker/{role}.Dockerfile").read_text()
        assert json.loads(re.findall(r"^CMD (.*)$", dockerfile, re.M)[-1]) == SERVICES[role]["command"]


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_minimal_privileges(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "train"])
def test_services_have_limits_and_full_version_tags(name):
    service = SERVICES[name]
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["pids_limit"] > 0
    if not service["image"].startswith("clipsynth-"):
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"])


def test_redis_may_use_half_of_its_memory():
    script = (ROOT / "docker/redis.sh").read_text()
    assert re.search(r"^maxmemory \$\{REDIS_MAXMEMORY:-1gb\}$", script, re.M)
    assert SERVICES["redis"]["mem_limit"] == "2g"


@pytest.mark.parametrize("name", OURS)
def test_every_process_has_a_health_check(name):
    assert "test" in SERVICES[name].get("healthcheck", {}) or name in ("app", "worker")  # in their images


def test_every_request_needs_a_key():
    assert SERVICES["app"]["environment"]["CLIPSYNTH_REQUIRE_KEYS"] == "1"


def test_only_the_api_is_published_and_on_loopback():
    published = {name: s["ports"] for name, s in SERVICES.items() if "ports" in s and "profiles" not in s}
    assert published == {"app": ["127.0.0.1:8000:8000"]}
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert SERVICES["redis"]["networks"] == SERVICES["worker"]["networks"] == ["inside"]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_the_published_address_decides_about_keys(address, monkeypatch):
    app = read("docker-compose.yml", CLIPSYNTH_PUBLISH=address)["services"]["app"]
    assert app["ports"] == [f"{address}:8000:8000"]
    for name, value in app["environment"].items():
        monkeypatch.setenv(name, value or "")
    settings = Settings(host="0.0.0.0")
    assert settings.allow_anonymous is None
    assert settings.require_keys
    assert settings.is_loopback is (address == "127.0.0.1")


def test_a_worker_may_finish_its_jobs_at_stop():
    minutes = int(re.fullmatch(r"(\d+)m", SERVICES["worker"]["stop_grace_period"])[1])
    assert 60 * minutes > Settings().job_timeout_s


def test_every_compose_variable_is_a_setting():
    for name in OURS:
        assert set(SERVICES[name]["environment"]) <= KNOWN


def test_the_check_script_runs_the_default_services():
    """It takes the commands from the compose file itself; here: of all services that start by default."""
    source = (ROOT / "docker/check.py").read_text()
    run = set(re.findall(r'"(\w+)"', re.search(r"^RUN = \((.*)\)$", source, re.M)[1]))
    assert run == {name for name, service in SERVICES.items() if "profiles" not in service}
