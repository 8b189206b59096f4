"""Timelines: from a body to the windows of the worker."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clipsynth.schemas.generation import ReplayToken
from clipsynth.settings import Settings
from tests.support.api_service import check_problem, image, samples, serving

STEPS = {"num_inference_steps": 2, "seed": 3}
RAIN = {"text": "rain", "start_s": 0, "end_s": 1.5}
DOG = {
    "text": "a dog",
    "start_s": 1,
    "end_s": 1.5,
    "weight": 2.0,
    "attributes": {"pitch": 0.9},
    "fade_s": 0.1,
}


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path, image_urls="public")
    yield from serving(settings, tiny_pipeline)


def post(service, *items, **fields):
    return service.post({"timeline": list(items), **STEPS, **fields})


def test_a_timeline_ends_with_its_last_item(service):
    made = service.finish(post(service, DOG | {"start_s": 1.5, "end_s": 2.0}, {**RAIN, "end_s": 0.5}))
    assert made["input"]["duration_s"] == 2.0
    assert "prompt" in made["input"]
    wave = samples(service.client.get(made["outputs"][0]["url"]).content)
    assert len(wave) == 32000
    assert np.abs(wave[8000:24000]).max() == 0
    assert np.abs(wave[:8000]).max() > 0 < np.abs(wave[24000:]).max()


def test_a_timeline_is_replayed_to_the_byte(service):
    made = service.finish(post(service, RAIN, DOG, loop=True, negative_prompt="wind", guidance_scale=2))
    [output] = made["outputs"]
    sound = service.client.get(output["url"]).content
    again = service.finish(service.client.post("/v1/replay", json={"recipe": output["recipe"]}))
    assert again["input"]["timeline"] == made["input"]["timeline"]
    assert again["outputs"][0]["recipe"] == output["recipe"]
    assert service.client.get(again["outputs"][0]["url"]).content == sound
    turned = service.finish(post(service, DOG, RAIN, loop=True, negative_prompt="wind", guidance_scale=2))
    assert ReplayToken.read(turned["outputs"][0]["recipe"]).id == ReplayToken.read(output["recipe"]).id


def test_an_image_of_a_timeline_comes_in_a_form(service):
    timeline = [RAIN, {"image": "part:beach", "start_s": 0.5, "end_s": 1}]
    files = {"beach": ("x.png", image("PNG")), "other": ("y.png", image("PNG"))}
    late = {"image": "part:other", "start_s": 1, "end_s": 1.5}
    data = {**STEPS, "timeline": json.dumps([*timeline, late])}
    made = service.finish(service.post(data=data, files=files))
    assert made["status"] == "succeeded", made
    keys = [item["image_key"] for item in made["input"]["timeline"]]
    assert [key and key.rpartition("/")[2] for key in keys] == [None, "0.png", "1.png"]
    again = service.client.post("/v1/replay", json={"recipe": made["outputs"][0]["recipe"]})
    assert service.finish(again)["outputs"][0]["recipe"] != ""
    missing = service.post(data=data, files={"beach": files["beach"]})
    check_problem(missing, 422, "invalid_request")
    assert missing.json()["errors"][0]["pointer"] == "/timeline/2/image"


def test_the_cost_is_that_of_one_set_in_one_window(service):
    estimate = {"prompt": None, **STEPS, "guidance_scale": 1}
    work = []
    for items in ([RAIN], [RAIN, DOG]):
        made = service.post({"timeline": items, **estimate, "duration_s": 1.5})
        work.append(float(service.redis.hget(f"clipsynth:gen:{made.json()['id']}", "work")))
    assert work == pytest.approx([2 * 1.5, 2 * (1.5 + 1.0)])


@pytest.mark.parametrize(
    ("items", "fields", "code"),
    [
        ([], {}, "invalid_request"),
        ([RAIN | {"end_s": 0}], {}, "invalid_request"),
        ([RAIN | {"end_s": 0.05}], {}, "invalid_request"),
        ([RAIN | {"start_s": -1}], {}, "invalid_request"),
        ([RAIN | {"weight": -1}], {}, "invalid_request"),
        ([RAIN | {"fade_s": 6}], {}, "invalid_request"),
        ([RAIN | {"text": None}], {}, "invalid_request"),
        ([RAIN | {"attributes": {"pitch": 2}}], {}, "invalid_request"),
        ([RAIN | {"end_s": 1e999}], {}, "invalid_request"),
        ([RAIN] * 9, {}, "invalid_request"),
        ([RAIN | {"start_s": n, "end_s": n + 0.5} for n in range(33)], {}, "invalid_request"),
        ([RAIN], {"prompt": "wind"}, "invalid_request"),
        ([RAIN], {"prompts": [{"text": "wind"}]}, "invalid_request"),
        ([RAIN], {"composition": "mix"}, "invalid_request"),
        ([RAIN], {"method": "retrieval"}, "invalid_request"),
        ([RAIN], {"duration_s": 1.4}, "invalid_request"),
        ([RAIN | {"end_s": 61}], {}, "too_long"),
        ([RAIN | {"image_url": "https://10.0.0.1/a.png", "text": None}], {}, "invalid_request"),
    ],
)
def test_a_bad_timeline_is_refused(service, items, fields, code):
    body = json.loads(json.dumps({"timeline": items, **STEPS, **fields}).replace("Infinity", "1e999"))
    check_problem(
        service.client.post(
            "/v1/generations",
            content=json.dumps(body).replace("Infinity", "1e999"),
            headers={"content-type": "application/json"},
        ),
        422,
        code,
    )


def test_a_timeline_that_is_too_long_names_its_last_item(service):
    refused = post(service, RAIN, RAIN | {"end_s": 61}, DOG)
    check_problem(refused, 422, "too_long")
    assert refused.json()["errors"][0]["pointer"] == "/timeline/1/end_s"
    refused = post(service, RAIN, duration_s=61)
    assert refused.json()["errors"][0]["pointer"] == "/duration_s"


def test_a_file_that_no_item_names_is_an_error_of_the_timeline(service):
    data = {**STEPS, "timeline": json.dumps([RAIN])}
    refused = service.post(data=data, files={"beach": ("x.png", image("PNG"))})
    assert refused.json()["errors"][0]["pointer"] == "/timeline"


def test_an_attribute_that_the_model_lacks_is_named(service):
    service.state.announce(service.info.model_copy(update={"attributes": []}))
    refused = post(service, RAIN, DOG)
    check_problem(refused, 422, "attribute_unavailable")
    assert refused.json()["detail"].startswith("/timeline/1/attributes/pitch")


def test_many_items_may_follow_each_other(service):
    items = [RAIN | {"start_s": n / 10, "end_s": n / 10 + 0.1} for n in range(32)]
    made = service.finish(post(service, *items))
    assert made["status"] == "succeeded", made
