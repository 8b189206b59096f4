"""Scrape a live API and worker; dashboard, alerts and scaling query only what is scraped."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient
from redis import Redis

from app.main import create_app
from clipsynth.services.metrics_server import expose
from clipsynth.settings import Settings
from tests.support.api_service import SHORT, serving
from worker import metrics

DOCKER = Path(__file__).resolve().parents[3] / "docker"
SUFFIXES = {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


@pytest.fixture
def worker_url():
    server = expose(metrics.REGISTRY, 0, healthy=lambda: True)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_redis_writes_to_disk_before_it_answers(redis_url):
    with Redis.from_url(redis_url) as redis:
        assert redis.config_get("append*") == redis.config_get("append*") | {
            "appendfsync": "always",
            "appendonly": "yes",
        }
    for file in (DOCKER / "redis.sh", DOCKER / "kubernetes" / "redis.yaml"):
        assert re.search(r"^\s*appendfsync always$", file.read_text(), re.M)


def fetch(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def names(scrape):
    """All names of samples that a scrape's families have, or will have with their first label."""
    families = re.findall(r"^# TYPE (\w+) (\w+)$", scrape, re.M)
    return {name + suffix for name, kind in families for suffix in SUFFIXES[kind]}


def value(scrape, sample):
    found = re.search(rf"^{re.escape(sample)} (\S+)$", scrape, re.M)
    return float(found[1]) if found else 0.0


def asked_for():
    rules = yaml.safe_load((DOCKER / "prometheus/rules.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    dashboard = json.loads((DOCKER / "grafana/dashboards/clipsynth.json").read_text())
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions.append((DOCKER / "kubernetes/scaling.yaml").read_text())
    return {name for e in expressions for name in re.findall(r"\b(?:clipsynth|http)_\w+", e)}


def test_dashboard_alerts_and_scaling_use_existing_metrics(service, worker_url):
    service.finish(service.post({"prompt": "rain", **SHORT}))
    scraped = names(service.client.get("/metrics").text) | names(fetch(f"{worker_url}/metrics"))
    asked = asked_for()
    assert len(asked) > 20
    assert asked <= scraped


def test_the_worker_measures_the_stages_of_its_jobs(service, worker_url):
    before = fetch(f"{worker_url}/metrics")
    service.finish(service.post({"prompt": "rain", "num_outputs": 2, **SHORT}))
    after = fetch(f"{worker_url}/metrics")

    def more(sample):
        return value(after, sample) - value(before, sample)

    assert more('clipsynth_jobs_total{kind="text",model="tiny",outcome="succeeded"}') == 1
    assert more("clipsynth_steps_total") == 2 * SHORT["num_inference_steps"]
    assert more("clipsynth_real_time_factor_count") == 1
    stages = {
        "queue": 1,
        "encode_prompt": 1,
        "batch_wait": 1,
        "sample": 2,
        "vocode": 1,
        "write": 2,
        "total": 1,
    }
    assert {s: more(f'clipsynth_job_seconds_count{{stage="{s}"}}') for s in stages} == stages


def test_queue_metrics_have_a_model_label(service):
    service.post({"prompt": "rain", **SHORT})
    scrape = service.client.get("/metrics").text
    assert value(scrape, 'clipsynth_queue_depth{model="tiny"}') == 1
    assert 0 < value(scrape, 'clipsynth_queue_oldest_age_seconds{model="tiny"}') < 60
    assert value(scrape, "clipsynth_redis_saves") == 1


def test_rejected_requests_are_counted(service):
    service.redis.delete("clipsynth:alive:tiny", "clipsynth:seen")
    assert service.post({"prompt": "rain"}).json()["code"] == "no_worker"
    assert (
        value(service.client.get("/metrics").text, 'clipsynth_admission_rejects_total{code="no_worker"}') == 1
    )


def test_the_scrape_works_without_redis():
    with TestClient(create_app(Settings(redis_url="redis://127.0.0.1:1", allow_anonymous=True))) as client:
        scrape = client.get("/metrics").text
    assert "\nclipsynth_redis_up 0.0\n" in scrape
    assert "http_requests_total" in scrape


def test_the_metrics_port_needs_no_key(redis_url, tmp_path, caplog):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path, metrics_port=0, allow_anonymous=False)
    with (
        caplog.at_level("INFO", "clipsynth.services.metrics_server"),
        TestClient(create_app(settings)) as client,
    ):
        assert client.get("/metrics").status_code == 401
        port = caplog.messages[-1].rpartition(" ")[2]
        assert "clipsynth_redis_up 1.0" in fetch(f"http://127.0.0.1:{port}/metrics")


@pytest.mark.parametrize(("well", "status"), [(True, 200), (False, 503)])
def test_healthz_answers_200_or_503(well, status):
    server = expose(metrics.REGISTRY, 0, healthy=lambda: well)
    try:
        fetch(f"http://127.0.0.1:{server.server_port}/healthz")
        answered = 200
    except urllib.error.HTTPError as error:
        answered = error.code
        error.close()
    finally:
        server.shutdown()
        server.server_close()
    assert answered == status
