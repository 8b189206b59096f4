"""Weighted sets from a client's body to the worker's rows, their recipe, and back."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.requests.body import validate
from app.requests.submit import resolve
from app.routes.remakes import KEPT, _prompt
from clipsynth.errors import InvalidRequest
from clipsynth.jobs.store import new_id
from clipsynth.schemas.generation import JobPayload, ReplayToken
from clipsynth.schemas.prompts import Composition
from clipsynth.schemas.request import GenerationRequest
from clipsynth.settings import Settings
from models.conditioning.prompts import COMPOSITIONS
from tests.support.api_service import SHORT, check_problem, image, serving
from worker.job_runner import JobRunner
from worker.main import model_info
from worker.predictor import Predictor


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


COMPOSITION = get_args(Composition)[0]  # of its Annotated
PNG = image("PNG")
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
PIANO, RAIN, SPEECH = {"text": "piano"}, {"text": "rain", "weight": 0.5}, {"text": "speech", "weight": -0.5}


# ------------------------------------------------------------------------------------------ over HTTP


def test_a_weighted_set_sounds_the_same_in_any_order(service):
    items = [PIANO, {"image": DATA_URL, "weight": 2}, RAIN, SPEECH]
    one, other = (
        service.wav(service.post({"prompts": order, "seed": 3, **SHORT})) for order in (items, items[::-1])
    )
    assert one == other
    without = service.wav(service.post({"prompts": items[:3], "seed": 3, **SHORT}))
    assert without != one


def test_the_response_echoes_the_set_and_its_weights(service):
    done = service.finish(service.post({"prompts": [SPEECH, PIANO], **SHORT}))
    assert [(p["text"], p["weight"]) for p in done["input"]["prompts"]] == [("speech", -0.5), ("piano", 1.0)]
    assert done["input"]["composition"] == "set"


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_compositions_differ_and_replay_byte_equal(service, guidance_scale):
    sounds = {}
    for composition in get_args(COMPOSITION):
        body = {
            "prompts": [PIANO, RAIN],
            "composition": composition,
            "guidance_scale": guidance_scale,
            "seed": 3,
        }
        done = service.finish(service.post({**SHORT, **body}))
        assert done["input"]["composition"] == composition
        sounds[composition] = service.client.get(done["outputs"][0]["url"]).content
        token = done["outputs"][0]["recipe"]
        assert ReplayToken.read(token).composition == composition
        assert service.wav(service.client.post("/v1/replay", json={"recipe": token})) == sounds[composition]
    assert len(set(sounds.values())) == 3


def test_a_prompt_and_an_image_are_composed_too(service):
    def sound(composition):
        fields = {"prompt": "rain", "composition": composition, "seed": "1", **SHORT}
        parts = [(name, (None, str(value))) for name, value in fields.items()]
        return service.wav(service.post(files=[*parts, ("image", ("x", PNG))]))

    assert len({sound(composition) for composition in get_args(COMPOSITION)}) == 3


def test_models_and_api_name_the_same_compositions():
    assert get_args(COMPOSITION) == COMPOSITIONS


def form(prompts, **files):
    parts = [(name, ("x", data)) for name, data in files.items()]
    return parts + [
        (n, (None, str(v))) for n, v in {"prompts": json.dumps(prompts), **SHORT, "seed": 1}.items()
    ]


def test_a_form_carries_several_images_by_name(service):
    red, blue = image("JPEG"), image("WEBP")
    prompts = [{"image": "part:blue", "weight": 0.5}, PIANO, {"image": "part:red"}]
    sent = service.wav(service.post(files=form(prompts, red=red, blue=blue)))
    prompts[0]["image"], prompts[2]["image"] = (base64.b64encode(data).decode() for data in (blue, red))
    assert service.wav(service.post({"prompts": prompts, "seed": 1, **SHORT})) == sent


def test_a_replayed_set_is_equal_to_the_byte(service):
    prompts = [SPEECH, {"image": "part:b"}, PIANO, {"image": "part:a", "weight": 2}]
    done = service.finish(service.post(files=form(prompts, a=image("PNG"), b=image("PNG"))))
    replay = service.client.post("/v1/replay", json={"recipe": done["outputs"][0]["recipe"]})
    assert service.wav(replay) == service.client.get(done["outputs"][0]["url"]).content
    shutil.rmtree(Path(service.storage._root))
    replay = service.client.post("/v1/replay", json={"recipe": done["outputs"][0]["recipe"]})
    check_problem(replay, 410, "image_gone")


def test_the_replay_token_of_a_set_ignores_order(service):
    bodies = [{"prompts": order, "seed": 1, **SHORT} for order in ([PIANO, RAIN], [RAIN, PIANO])]
    one, other = (service.finish(service.post(body))["outputs"][0]["recipe"] for body in bodies)
    assert one == other


BAD_PNG = base64.b64encode(PNG[:200]).decode()


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({"prompts": []}, 422, "/prompts"),
        ({"prompts": [PIANO] * 9}, 422, "/prompts"),
        ({"prompts": [SPEECH]}, 422, "/prompts"),
        ({"prompts": [{"image": DATA_URL}] * 5}, 422, "/prompts"),
        ({"prompts": [PIANO, {}]}, 422, "/prompts/1"),
        ({"prompts": [PIANO, {"text": "a", "image": DATA_URL}]}, 422, "/prompts/1"),
        ({"prompts": [PIANO, {"text": " "}]}, 422, "/prompts/1/text"),
        ({"prompts": [PIANO, {"text": "a" * 1001}]}, 422, "/prompts/1/text"),
        ({"prompts": [PIANO, {"text": "a", "weight": 0}]}, 422, "/prompts/1/weight"),
        ({"prompts": [PIANO, {"text": "a", "weight": 10.5}]}, 422, "/prompts/1/weight"),
        ({"prompts": [PIANO, {"text": "a", "weight": "1"}]}, 422, "/prompts/1/weight"),
        ({"prompts": [PIANO, {"text": "a", "weight": True}]}, 422, "/prompts/1/weight"),
        ({"prompts": [PIANO, {"text": "a", "loudness": 1}]}, 422, "/prompts/1/loudness"),
        ({"prompts": [PIANO, SPEECH], "guidance_scale": 1}, 422, "/prompts/1/weight"),
        ({"prompts": [PIANO, {"image": "%%%"}]}, 422, "/prompts/1/image"),
        ({"prompts": [PIANO, {"image": "data:image/png,x"}]}, 422, "/prompts/1/image"),
        ({"prompts": [PIANO, {"image": "part:x"}]}, 422, "/prompts/1/image"),
        ({"prompts": [PIANO, {"image": BAD_PNG}]}, 422, "/prompts/1/image"),
        ({"prompts": [PIANO, {"image": "YWJj"}]}, 415, "/prompts/1/image"),
        ({"prompts": [PIANO, {"image_url": "https://example.org/a.png"}]}, 422, "/prompts/1/image_url"),
        ({"prompts": [PIANO], "composition": "sum"}, 422, "/composition"),
        ({"prompts": [PIANO], "prompt": "a"}, 422, "/"),
        ({"image": DATA_URL, "image_url": "https://example.org/a.png"}, 422, "/"),
        ({"prompt": "a", "metadata": {"": "a"}}, 422, "/metadata//[key]"),
        ({"prompt": "a", "metadata": {"a": 1}}, 422, "/metadata/a"),
        ({"prompt": "a", "metadata": {"a": "b" * 501}}, 422, "/metadata/a"),
        ({"prompt": "a", "metadata": {str(n): "" for n in range(17)}}, 422, "/metadata"),
    ],
)
def test_an_invalid_field_is_pointed_at(service, body, status, pointer):
    response = service.post({**body, **SHORT})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (status, pointer), response.text
    assert service.redis.exists("clipsynth:inflight", "clipsynth:holds") == 0  # no room is kept


@pytest.mark.parametrize(
    ("files", "status", "code"),
    [
        (form([PIANO], left=PNG), 422, "invalid_request"),
        (form([{"image": "part:other"}], one=PNG), 422, "invalid_request"),
        (form([{"image": "part:f0"}], **{f"f{n}": PNG for n in range(5)}), 400, "invalid_body"),
        (form([PIANO, {"image": "part:a"}], a=PNG) * 2, 400, "invalid_body"),
        ([("prompts", (None, "[")), ("a", ("x", PNG))], 400, "invalid_body"),
        ([("prompts", (None, "3"))], 422, "invalid_request"),
    ],
)
def test_a_bad_form_is_a_problem(service, files, status, code):
    check_problem(service.post(files=files), status, code)


def test_metadata_is_returned(service):
    metadata = {"project": "Glöckchen", "take": "3"}
    response = service.post({"prompt": "a", "metadata": metadata, **SHORT})
    assert service.finish(response)["metadata"] == metadata
    assert service.client.get("/v1/generations").json()["data"][0]["metadata"] == metadata
    in_form = [("prompt", (None, "a")), ("metadata", (None, json.dumps(metadata)))]
    assert service.post(files=in_form).json()["metadata"] == metadata
    assert service.post({"prompt": "a"}).json()["metadata"] == {}


def test_an_idempotency_key_covers_every_image(service):
    def post(second):
        return service.post(
            {"prompts": [{"image": DATA_URL}, {"image": base64.b64encode(second).decode()}], **SHORT},
            headers={"idempotency-key": "k"},
        )

    first = post(PNG)
    assert post(PNG).json()["id"] == first.json()["id"]
    check_problem(post(image("PNG")), 422, "idempotency_mismatch")


# ------------------------------------------------------------------------------------------ any set


def either(good, bad):
    """A value, and whether it should be accepted; good ones far more often, or no set would be."""
    return st.integers(0, 15).flatmap(
        lambda n: st.tuples(bad, st.just(False)) if n == 0 else st.tuples(good, st.just(True))
    )


WEIGHTS = either(
    st.floats(0.01, 10) | st.floats(-10, -0.01) | st.integers(1, 10),
    st.sampled_from([0, 0.0, -0.0, 0.009, 10.01, -11, 1e308, float("inf"), float("nan"), "1", None, True]),
)
TEXTS = either(
    st.text("abcdé鐘 ", min_size=1, max_size=9).filter(str.strip), st.sampled_from(["", " ", 3, "a" * 1001])
)
IMAGES = either(st.sampled_from([DATA_URL, DATA_URL.partition(",")[2], "part:one"]), st.just(5))


@st.composite
def any_item(draw):
    field, contents = draw(st.sampled_from([("text", TEXTS), ("text", TEXTS), ("image", IMAGES)]))
    content, good = draw(contents)
    item = {field: content}
    if draw(st.booleans()):
        item["weight"], good_weight = draw(WEIGHTS)
        good = good and good_weight
    if draw(st.integers(0, 40)) == 0:
        item, good = {"weight": 1.0}, False
    return item, good


@st.composite
def any_set(draw):
    """A set, and the numbers of its bad items."""
    items = draw(st.lists(any_item(), max_size=10))
    return [item for item, _ in items], [n for n, (_, good) in enumerate(items) if not good]


def complaint(prompts):
    """What should be said of a set whose items are all good."""
    positive = any(item.get("weight", 1) > 0 for item in prompts)
    images = sum("image" in item for item in prompts)
    return not 1 <= len(prompts) <= 8 or not positive or images > 4


def identity(payload):
    """What a set asks for, whatever its order and wherever its images lie."""
    return sorted((c.text or "", c.image_sha256 or "", c.weight) for c in payload.conditions)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(any_set(), st.sampled_from(COMPOSITIONS), st.randoms())
def test_any_set_is_rejected_or_survives_the_recipe_and_back(tiny_info, made, composition, rng):
    prompts, bad = made
    try:
        wanted = validate(GenerationRequest, {"prompts": prompts, "composition": composition}, strict=True)
    except RequestValidationError as error:
        places = [tuple(e["loc"]) for e in error.errors()]
        assert bad or complaint(prompts)
        assert all(place[0] == "prompts" for place in places)
        pointed = {place[1] for place in places if len(place) > 1}
        assert pointed == (set(bad) if len(prompts) <= 8 else pointed)
        return
    assert not bad
    assert not complaint(prompts)
    payload = resolve(wanted, tiny_info, new_id())
    for item in payload.prompts:
        item.image_sha256 = f"{rng.random()}" if item.image_key else None
    assert [(i.text, i.weight) for i in payload.prompts] == [
        (p.get("text"), p.get("weight", 1)) for p in prompts
    ]
    read = JobPayload.model_validate(json.loads(payload.model_dump_json()))
    assert (read, read.composition) == (payload, composition)
    recipe = ReplayToken.read(recipe_of(read).token())
    shuffled = read.model_copy(update={"prompts": rng.sample(read.prompts, len(read.prompts))})
    assert recipe_of(shuffled).token() == recipe.token()
    again = resolve(replayed(recipe), tiny_info, new_id())
    for item, old in zip(again.prompts, recipe.prompts, strict=True):
        item.image_sha256 = old.image_sha256
    assert (identity(again), again.composition) == (identity(payload), composition)
    assert recipe_of(again).id == recipe.id


def recipe_of(payload):
    class ServedBundle:
        dtype, manifest = "float32", type("Manifest", (), {"version": "1"})

    return JobRunner(ServedBundle, None, None, max_attempts=1)._recipe(payload, 0)


def replayed(recipe):
    """Return the request of a recipe as POST /v1/replay makes it, but for the look at the images."""
    items = [item.model_copy(update={"image_key": None}) for item in recipe.prompts]
    prompts = [
        {"image": "part:x", "weight": item.weight} if item.text is None else _prompt(None, item, {})
        for item in items
    ]
    fields = recipe.model_dump(include=KEPT) | {"prompts": prompts}
    return validate(GenerationRequest, fields, strict=True)


@pytest.fixture(scope="module")
def tiny_info(tiny_pipeline):
    return model_info(tiny_pipeline.manifest)


SMALL = st.lists(
    st.tuples(st.sampled_from(["rain", "a dog", "wind", None]), st.floats(0.01, 10) | st.floats(-10, -0.01)),
    min_size=1,
    max_size=8,
).filter(lambda items: any(w > 0 for _, w in items) and sum(t is None for t, _ in items) <= 4)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(SMALL, st.sampled_from(COMPOSITIONS), st.randoms(), st.floats(0, 20))
def test_the_rows_of_any_set_do_not_depend_on_its_order(
    tiny_pipeline, tiny_info, items, composition, rng, scale
):
    prompts = [{"image": "part:x"} if text is None else {"text": text} for text, _ in items]
    prompts = [prompt | {"weight": weight} for prompt, (_, weight) in zip(prompts, items, strict=True)]

    def resolved(order):
        fields = {
            "prompts": order,
            "composition": composition,
            "guidance_scale": scale,
            "seed": 1,
            **SHORT,
        }
        return resolve(validate(GenerationRequest, fields, strict=True), tiny_info, new_id())

    def rows(order):
        payload = resolved(order)
        images = {c.image_key: Image.new("RGB", (8, 8), "red") for c in payload.conditions if c.image_key}
        return Predictor(tiny_pipeline).rows(payload, images)[0]

    if scale <= 1 and any(weight < 0 for _, weight in items):
        with pytest.raises(InvalidRequest, match=r"^/prompts/\d/weight: "):
            rows(prompts)
        return
    one, other = rows(prompts), rows(rng.sample(prompts, len(prompts)))
    assert torch.equal(one.latents, other.latents)
    assert one.weights == other.weights
    for a, b in zip((*one.conds, one.uncond), (*other.conds, other.uncond), strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.mask, b.mask)
    positive, negative = (sum(sign * w > 0 for _, w in items) for sign in (1, -1))
    assert (sum(int(cond.mask.sum()) for cond in one.conds), int(one.uncond.mask.sum())) == (
        positive,
        negative,
    )
    [[_, conditional, added]] = resolved(prompts).rows(5.0)
    assert one.passes == conditional + added
