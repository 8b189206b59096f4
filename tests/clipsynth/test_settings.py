from pathlib import Path

import pytest

from clipsynth.settings import Settings


def test_the_model_variable_sets_the_bundle(monkeypatch):
    monkeypatch.setenv("CLIPSYNTH_MODEL", "/bundles/rain")
    assert Settings().model == Path("/bundles/rain")


def test_a_variable_wins_over_a_secret_file(monkeypatch, tmp_path):
    (tmp_path / "clipsynth_redis_password").write_text("a/b\n")
    (tmp_path / "clipsynth_webhook_secret").write_text("whsec_file")
    monkeypatch.setenv("CLIPSYNTH_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("CLIPSYNTH_REDIS_URL", "redis://redis:6379/1")
    monkeypatch.setenv("CLIPSYNTH_WEBHOOK_SECRET", "whsec_variable")
    settings = Settings()
    assert settings.redis_url == "redis://:a%2Fb@redis:6379/1"
    assert settings.webhook_secret == "whsec_variable"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://user@redis:6379", "redis://user:pw@redis:6379"),
        ("rediss://:own@redis:6379", "rediss://:own@redis:6379"),
        (None, None),
    ],
)
def test_the_password_fills_a_url_without_one(url, expected):
    assert Settings(redis_url=url, redis_password="pw").redis_url == expected


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("CLIPSYNTH_ALLOW_ANONYMOUS", "")
    assert Settings().allow_anonymous is None


@pytest.mark.parametrize(("published", "alone"), [("127.0.0.1", True), ("0.0.0.0", False), (None, False)])
def test_a_published_port_decides_about_loopback(published, alone):
    assert Settings(host="0.0.0.0", published_host=published).is_loopback is alone
