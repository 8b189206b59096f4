"""Spectrograms, peaks and recipes of outputs, over the service of test_generations."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from clipsynth.errors import NotFound
from clipsynth.schemas.generation import ReplayToken
from clipsynth.services.janitor import sweep
from clipsynth.settings import Settings
from tests.support.api_service import SHORT, check_problem, serving


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


def test_each_output_has_a_spectrogram_and_peaks(service):
    done = service.finish(service.post({"prompt": "rain", "num_outputs": 2, **SHORT}))
    seen = set()
    for output in done["outputs"]:
        png = service.client.get(output["spectrogram_url"])
        assert png.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(png.content)).width == 50  # 10 ms per pixel
        peaks = service.client.get(output["peaks_url"])
        assert peaks.headers["content-type"] == "application/json"
        assert (peaks.json()["sample_rate"], peaks.json()["length"]) == (16000, 1000)
        seen |= {png.content, peaks.content}
    assert len(seen) == 4


@pytest.mark.parametrize("kind", ["spectrogram", "peaks"])
def test_previews_are_served_like_the_sound(service, kind):
    response = service.post({"prompt": "rain", **SHORT})
    url = f"{response.headers['location']}/{kind}"
    check_problem(service.client.get(f"{url}/0"), 409, "not_ready")
    service.finish(response)
    got = service.client.get(f"{url}/0")
    assert "immutable" in got.headers["cache-control"]
    head = service.client.head(f"{url}/0")
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", got.headers["etag"])
    assert head.headers["content-length"] == str(len(got.content))
    known = service.client.get(f"{url}/0", headers={"if-none-match": got.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    part = service.client.get(f"{url}/0", headers={"range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, got.content[1:4])
    check_problem(service.client.get(f"{url}/1"), 404, "not_found")
    check_problem(service.client.get(f"{url}/-1"), 404, "not_found")
    check_problem(service.client.get(f"{url}/x"), 422, "invalid_request")
    assert service.client.delete(response.headers["location"]).status_code == 204
    check_problem(service.client.get(f"{url}/0"), 410, "gone")


def test_previews_expire_with_the_sound(service):
    done = service.finish(service.post({"prompt": "rain", **SHORT}))
    views = f"{service.state.get(done['id']).folder}/0.views"
    assert service.storage.get(views)
    service.redis.zadd("clipsynth:expiry", {done["id"]: 1})
    assert sweep(service.state, service.storage) == 1
    with pytest.raises(NotFound):
        service.storage.get(views)


def test_previews_of_an_older_worker_are_two_files(service):
    done = service.finish(service.post({"prompt": "rain", **SHORT}))
    service.storage.delete(done["id"])
    service.redis.hdel(f"clipsynth:gen:{done['id']}", "attempt")
    service.storage.put(f"{done['id']}/0.png", b"PNG")
    service.storage.put(f"{done['id']}/0.json", b"{}")
    assert service.client.get(done["outputs"][0]["spectrogram_url"]).content == b"PNG"
    assert service.client.get(done["outputs"][0]["peaks_url"]).content == b"{}"


def test_missing_previews_are_a_problem(service):
    done = service.finish(service.post({"prompt": "rain", **SHORT}))
    service.storage.delete(done["id"])
    check_problem(service.client.get(done["outputs"][0]["peaks_url"]), 404, "not_found")


def test_a_generation_lists_its_recipes(service):
    body = {"prompts": [{"text": "rain"}, {"text": "wind", "weight": -1}], "seed": 2**32 - 1}
    response = service.post({**body, "num_outputs": 2, "output_formats": ["wav", "flac"], **SHORT})
    url = response.json()["links"]["recipe"]
    check_problem(service.client.get(url), 409, "not_ready")
    done = service.finish(response)
    recipes = service.client.get(url).json()["data"]
    assert [(r["index"], r["recipe"]["seed"]) for r in recipes] == [(0, 2**32 - 1), (1, 0)]
    for recipe in recipes:
        output = next(o for o in done["outputs"] if o["index"] == recipe["index"])
        read = ReplayToken.read(output["recipe"])
        assert (recipe["token"], recipe["id"]) == (output["recipe"], read.id)
        assert recipe["recipe"] == json.loads(read.model_dump_json())
