"""Alert rules: explained to the operator, accepted by promtool, and firing when they should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "docker/prometheus/rules.yml"
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")

# For each alert: series, as promtool writes them (value every minute), of a service that is ill; 45 minutes
# in, only that alert fires.
ILL = {
    "ClipSynthRedisDown": {"clipsynth_redis_up": "0x45"},
    "ClipSynthRedisDoesNotSave": {"clipsynth_redis_saves": "0x45"},
    "ClipSynthRedisFillsUp": {
        "clipsynth_redis_memory_bytes": "76x45",
        "clipsynth_redis_max_memory_bytes": "100x45",
    },
    "ClipSynthNoWorker": {
        'clipsynth_model_ready{model="m"}': "0x45",
        'clipsynth_unfinished{model="m"}': "3x45",
    },
    "ClipSynthWorkerStuck": {'clipsynth_last_step_age_seconds{instance="w"}': "121x45"},
    "ClipSynthLongWait": {'clipsynth_estimated_wait_seconds{model="m"}': "61x45"},
    "ClipSynthQueueStalled": {'clipsynth_queue_oldest_age_seconds{model="m"}': "1801x45"},
    "ClipSynthJobsFailing": {
        'clipsynth_jobs_total{outcome="failed"}': "0+6x45",
        'clipsynth_jobs_total{outcome="succeeded"}': "0+94x45",
    },
    "ClipSynthWorkersLost": {"clipsynth_recovered_jobs_total": "0+1x45"},
    "ClipSynthOrphanedJobs": {"clipsynth_orphaned_jobs_total": "0x20 1x24"},
    "ClipSynthOutOfMemory": {'clipsynth_out_of_memory_total{instance="w"}': "0+1x45"},
    "ClipSynthTwoPrecisions": {'clipsynth_model_precisions{model="m"}': "2x45"},
    "ClipSynthRejecting": {
        "clipsynth_admission_rejects_total": "0+11x45",
        'http_requests_total{method="POST",status="202"}': "0+100x45",
    },
    "ClipSynthBudgetFull": {'clipsynth_budget_refusals_total{budget="b",scope="process"}': "0+1x45"},
    "ClipSynthErrors": {
        'http_requests_total{status="503"}': "0+2x45",
        'http_requests_total{status="200"}': "0+98x45",
    },
    "ClipSynthWebhooksWait": {"clipsynth_webhooks_waiting": "1001x45"},
}
WELL = {
    'clipsynth_budget_refusals_total{budget="b",scope="key"}': "0+1x45",
    "clipsynth_redis_memory_bytes": "74x45",
    "clipsynth_redis_max_memory_bytes": "100x45",
    "clipsynth_redis_up": "1x45",
    "clipsynth_redis_saves": "1x45",
    'clipsynth_model_ready{model="m"}': "1x45",
    'clipsynth_unfinished{model="m"}': "3x45",
    'clipsynth_model_precisions{model="m"}': "1x45",
    'clipsynth_last_step_age_seconds{instance="w"}': "119x45",
    'clipsynth_estimated_wait_seconds{model="m"}': "59x45",
    'clipsynth_queue_oldest_age_seconds{model="m"}': "1799x45",
    'clipsynth_jobs_total{outcome="failed"}': "0+4x45",
    'clipsynth_jobs_total{outcome="succeeded"}': "0+96x45",
    "clipsynth_recovered_jobs_total": "1x45",
    "clipsynth_orphaned_jobs_total": "1x45",
    'clipsynth_out_of_memory_total{instance="w"}': "1x45",
    "clipsynth_admission_rejects_total": "0+9x45",
    'http_requests_total{method="POST",status="202"}': "0+100x45",
    'http_requests_total{method="POST",status="503"}': "1x45",
    "clipsynth_webhooks_waiting": "999x45",
}


def promtool(*words):
    result = subprocess.run([PROMTOOL, *map(str, words)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def firing(series, folder):
    """Return the alerts that fire after 45 minutes, from promtool's complaint that it expected none."""
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{"eval_time": "45m", "alertname": name, "exp_alerts": []} for name in ALERTS],
        }
    ]
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": tests}))
    result = subprocess.run([PROMTOOL, "test", "rules", path], capture_output=True, text=True, check=False)
    said = result.stdout + result.stderr
    assert result.returncode == 0 or "alertname" in said, said
    return set(re.findall(r"alertname: ?\"?(\w+)", said))


def test_every_alert_is_documented():
    explained = re.findall(r"^\| (ClipSynth\w+) \|", (ROOT / "docs/operations.md").read_text(), re.M)
    assert explained == ALERTS


def test_every_alert_has_a_test_case():
    assert list(ILL) == ALERTS


@needs_promtool
def test_promtool_accepts_rules_and_config():
    assert f"{len(ALERTS) + 1} rules found" in promtool("check", "rules", RULES)
    promtool("check", "config", RULES.parent / "prometheus.yml")


@needs_promtool
@pytest.mark.parametrize("alert", ALERTS)
def test_each_fault_fires_only_its_alert(alert, tmp_path):
    assert firing(ILL[alert], tmp_path) == {alert}


@needs_promtool
def test_no_alert_fires_on_a_healthy_service(tmp_path):
    assert firing(WELL, tmp_path) == set()
