from pathlib import Path

from clipsynth.settings import Settings


def test_the_bundle_is_called_model_in_the_environment_too(monkeypatch):
    monkeypatch.setenv("CLIPSYNTH_MODEL", "/bundles/rain")
    assert Settings().model == Path("/bundles/rain")
