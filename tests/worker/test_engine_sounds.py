"""The engine with a real pipeline: a sound does not depend on the jobs beside it."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from clipsynth.schemas.generation import JobPayload
from clipsynth.schemas.prompts import StoredItem, StoredPrompt
from models import Prompt
from models.conditioning.prompts import COMPOSITIONS
from tests.support.constants import BATCHED_TOLERANCE
from tests.support.engine import TIMEOUT_S, arrive, finish, run
from tests.support.tiny import build_tiny_pipeline
from worker.engine import weight
from worker.job_runner import JobRunner
from worker.output_files import faded
from worker.predictor import Predictor


def payload(**fields):
    defaults = {
        "model": "tiny",
        "prompt": "rain",
        "image_key": None,
        "negative_prompt": None,
        "seed": 0,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "duration_s": 0.7,
        "num_outputs": 1,
        "output_formats": ["wav"],
    }
    return JobPayload(**(defaults | fields))


def job(predictor, wanted):
    made = JobRunner(predictor, None, None, max_attempts=1).request("gen_0", wanted, "0" * 8)
    made.deliver = lambda n, wave: wave
    return made


def alone(predictor, wanted, n=0):
    fields = {
        "negative_prompt",
        "attributes",
        "num_inference_steps",
        "guidance_scale",
        "duration_s",
        "composition",
    }
    return predictor.pipeline(
        [Prompt(item.text, item.weight) for item in wanted.prompts or ()] or wanted.prompt,
        generator=torch.Generator().manual_seed(wanted.seed + n),
        **wanted.model_dump(include=fields),
    ).audios[0]


def several(composition, *texts, **fields):
    weights = (1.0, 0.5, 2.0)
    items = [StoredPrompt(text=text, weight=w) for text, w in zip(texts, weights, strict=False)]
    return payload(prompt=None, prompts=items, composition=composition, **fields)


COMPOSED = [
    several(composition, "rain", "a dog", "wind", seed=n, guidance_scale=scale, num_outputs=2)
    for n, (composition, scale) in enumerate(itertools.product(COMPOSITIONS, (1.0, 3.0)))
]


def test_a_job_alone_is_equal_to_the_pipeline_to_the_byte(engines, tiny_pipeline):
    predictor = Predictor(tiny_pipeline)
    engine = engines(predictor)
    engine.start()
    plain = [
        payload(),
        payload(seed=7, guidance_scale=1.0),
        payload(negative_prompt="wind"),
        payload(attributes={"loudness": 0.3}),
    ]
    for wanted in (*plain, *(each.model_copy(update={"num_outputs": 1}) for each in COMPOSED)):
        each = job(predictor, wanted)
        engine.submit(each)
        assert engine.ended.get(timeout=TIMEOUT_S) is each
        np.testing.assert_array_equal(each.results[0], alone(predictor, wanted))


@pytest.mark.slow
def test_a_sound_does_not_depend_on_its_company(engines, tiny_pipeline):
    predictor = Predictor(tiny_pipeline)
    draw = random.Random(0)
    wishes = [
        payload(
            seed=n,
            prompt=draw.choice(["rain", "a dog", "a cat and a bell"]),
            num_inference_steps=draw.randint(1, 9),
            guidance_scale=draw.choice([1.0, 2.5]),
            duration_s=draw.choice([0.5, 0.7, 1.3]),
            attributes=draw.choice([{}, {"loudness": 0.3}, {"pitch": 0.9, "loudness": 0.8}]),
            num_outputs=draw.randint(1, 3),
        )
        for n in range(0, 80, 8)
    ]
    wishes = [*COMPOSED[:3], *wishes, *COMPOSED[3:]]
    tickets = [job(predictor, wanted) for wanted in wishes]
    engine = engines(predictor, limit=predictor.num_tokens(1.3) * 6)
    for each in tickets[:4]:
        engine.submit(each)
    for each in tickets[4:]:
        engine.turn()
        engine.submit(each)
    while not all(each.ended for each in tickets):
        engine.turn()
    for wanted, each in zip(wishes, tickets, strict=True):
        assert each.error is None
        for n in range(wanted.num_outputs):
            np.testing.assert_allclose(
                each.results[n], alone(predictor, wanted, n), atol=BATCHED_TOLERANCE, rtol=0
            )


@pytest.fixture(scope="module", params=[(), (1.0, 10.0), (4.0, 10.0)], ids=str)
def predictor(request):
    """Of a bundle by the weights of guidance that it has learned."""
    return Predictor(build_tiny_pipeline(guidance_scales=request.param))


@pytest.mark.parametrize(
    "wanted",
    [
        *COMPOSED,
        payload(),
        payload(negative_prompt="wind"),
        payload(guidance_scale=10.0),
        payload(guidance_scale=10.5),
        several("compose", "rain"),
        several("mix", "rain", "a dog", negative_prompt="wind"),
    ],
    ids=lambda wanted: f"{wanted.composition}-{wanted.guidance_scale}",
)
def test_an_unprepared_job_counts_as_its_first_step(predictor, wanted):
    each = job(predictor, wanted)
    before = each.load()
    each.rows = each.prepare()
    assert before == each.full_load == each.load() == weight(each.rows)


LONG = [
    payload(duration_s=7.3, seed=3),
    payload(duration_s=1.3, seed=5, loop=True),
    payload(duration_s=6.1, seed=4, prompt=None, composition="mix", prompts=COMPOSED[0].prompts),
    payload(
        duration_s=3.0,
        prompt=None,
        timeline=[
            StoredItem(text="rain", start_s=0, end_s=2),
            StoredItem(text="a dog", start_s=1, end_s=1.5, attributes={"loudness": 0.3}),
        ],
    ),
]


def test_a_long_sound_alone_has_equal_bytes_at_any_limit(engines, tiny_pipeline):
    predictor = Predictor(tiny_pipeline)
    for wanted in LONG:
        expected = predictor.predict(wanted)
        for limit in (1, 10_000):
            each = job(predictor, wanted)
            run(engines(predictor, limit=limit), each)
            np.testing.assert_array_equal(faded(each.results[0], wanted, 16000), expected)


def test_a_long_sound_does_not_depend_on_its_company(engines, tiny_pipeline):
    predictor = Predictor(tiny_pipeline)
    tickets = [job(predictor, wanted) for wanted in (payload(), *LONG, payload(duration_s=3.0, seed=9))]
    engine = engines(predictor, limit=100_000)
    for each in tickets:
        engine.submit(each)
    arrive(engine, len(tickets))
    finish(engine, *tickets)
    for wanted, each in zip(LONG, tickets[1:-1], strict=True):
        assert each.error is None
        sound = faded(each.results[0], wanted, 16000)
        np.testing.assert_allclose(sound, predictor.predict(wanted), atol=BATCHED_TOLERANCE, rtol=0)


@pytest.mark.parametrize("wanted", LONG, ids=["long", "loop", "mix", "timeline"])
def test_a_job_of_windows_counts_as_much_before_it_is_prepared(predictor, wanted):
    each = job(predictor, wanted)
    before = each.load()
    each.rows = each.prepare()
    assert before == each.full_load == each.load() == weight(each.rows)


def test_the_nearest_clip_is_that_of_one_window(indexed_pipeline):
    predictor = Predictor(indexed_pipeline)
    noise = np.random.default_rng(0).normal(0, 0.1, 16000 * 12).astype(np.float32)
    clip = np.sin(2 * np.pi * 440 * np.arange(16000 * 4) / 16000).astype(np.float32)
    alone = predictor.nearness(clip)
    noise[16000 * 7 : 16000 * 11] = clip
    found = predictor.nearness(noise)
    assert found.nearest[0].video == alone.nearest[0].video
    assert found.copy_distance < predictor.nearness(noise[: 16000 * 7]).copy_distance
