"""How far a prompt travels through the code, counted in files."""

from __future__ import annotations

from clipsynth.settings import Settings
from tests.support.api_service import serving
from tests.support.call_path import record_calls

ROUTE = ("app/routes/generations.py", "create")
MOST_CHANGES, MOST_FILES = 14, 40


def test_a_prompt_passes_few_files(redis_url, tiny_pipeline, tmp_path):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path)
    with record_calls() as path:
        for service in serving(settings, tiny_pipeline):
            path.clear()  # what building the service called
            posted = service.post({"prompt": "a dog"})
            changes = path.changes(ROUTE)
            service.finish(posted)
    assert changes <= MOST_CHANGES
    assert len(path.files) <= MOST_FILES
