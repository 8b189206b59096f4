"""A service with a queue limit, and the cost of its model."""

from __future__ import annotations

import pytest

from clipsynth.schemas.model_info import ModelCost
from clipsynth.settings import Settings
from tests.support.api_client import Service

COST = ModelCost(audio_step_s=0.1, step_s=0.01, guided_share=0.5)


REQUEST_S = 4 * 2 * 1.5 * 0.1  # of the request that Service.post sends, by COST


@pytest.fixture
def serve(redis_url, tmp_path):
    """Return a function that starts a service with these settings."""
    services = []

    def start(**settings):
        service = Service(Settings(redis_url=redis_url, data_dir=tmp_path, **settings))
        service.client.__enter__()
        services.append(service)
        return service

    yield start
    for service in services:
        service.client.__exit__(None, None, None)
        service.redis.close()
