"""How far a prompt travels through the code, counted in files."""

from __future__ import annotations

import math
from functools import partial

from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from tests.support.api_service import serving
from tests.support.call_path import record_calls

ROUTE = ("app/routes/generations.py", "create")
MOST_CHANGES, MOST_FILES = 25, 47


def is_listening(service):
    return math.isfinite(service.client.app.state.services.events._listens_since)


def test_a_prompt_passes_few_files(redis_url, tiny_pipeline, tmp_path):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path)
    with record_calls() as path:
        for service in serving(settings, tiny_pipeline):
            # The subscription for notifications starts in the background.
            assert wait_until(partial(is_listening, service), timeout_s=10)
            path.clear()  # what building the service called
            posted = service.post({"prompt": "a dog"})
            changes = path.changes(ROUTE)
            service.finish(posted)
            files = path.files  # before the service closes
    assert changes <= MOST_CHANGES
    assert len(files) <= MOST_FILES
