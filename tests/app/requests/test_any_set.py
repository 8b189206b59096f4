"""Any weighted set, drawn by hypothesis: rejected by name, or kept to the recipe and back."""

from __future__ import annotations

import base64
import json

import pytest
import torch
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.requests.body import validate
from app.requests.recipe import KEPT, _prompt
from app.requests.submit import resolve
from clipsynth.errors import InvalidRequest
from clipsynth.jobs.store import new_id
from clipsynth.schemas.generation import JobPayload, ReplayToken
from clipsynth.schemas.request import GenerationRequest
from clipsynth.settings import Settings
from models.conditioning.prompts import COMPOSITIONS
from tests.support.api_service import SHORT, image
from worker.job_runner import JobRunner
from worker.main import model_info
from worker.predictor import Predictor

PNG = image("PNG")
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


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
    payload = resolve(wanted, tiny_info, new_id(), Settings())
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
    again = resolve(replayed(recipe), tiny_info, new_id(), Settings())
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
        return resolve(validate(GenerationRequest, fields, strict=True), tiny_info, new_id(), Settings())

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
