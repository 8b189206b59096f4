"""Weighted sets of texts and pictures in the pipeline."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from models import Prompt

RED = Image.new("RGB", (32, 32), "red")


def sound(pipe, *arguments, **named):
    generator = torch.Generator().manual_seed(0)
    return pipe(*arguments, duration_s=0.5, num_inference_steps=3, generator=generator, **named).audios[0]


def test_a_set_with_weights_of_one_is_what_the_plain_arguments_mean(tiny_pipeline):
    plain = sound(tiny_pipeline, "a dog", RED, negative_prompt="rain")
    np.testing.assert_array_equal(
        sound(tiny_pipeline, [Prompt("rain", -1.0), Prompt(RED), Prompt("a dog")]), plain
    )


def test_the_order_of_a_set_does_not_change_a_byte(tiny_pipeline):
    items = [Prompt("a dog", 0.5), Prompt(RED, 2.0), Prompt("rain", -0.5), Prompt("wind", -2.0)]
    first, *others = (sound(tiny_pipeline, list(order)) for order in list(itertools.permutations(items))[::5])
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_every_weight_is_heard(tiny_pipeline):
    sets = [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (2.0, 2.0), (1.0, -1.0), (1.0, -0.5)]
    sounds = [sound(tiny_pipeline, [Prompt("a dog", a), Prompt("rain", b)]) for a, b in sets]
    assert all(np.abs(a - b).max() > 0 for a, b in itertools.combinations(sounds, 2))


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf")])
def test_a_weight_that_means_nothing_is_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        Prompt("a", weight)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "positive"),
        ([Prompt("a", -1.0)], {}, "positive"),
        ([Prompt("a"), Prompt("b", -1.0)], {"guidance_scale": 1.0}, "guidance_scale"),
        ([Prompt("a")] * 9, {}, "at most 8"),
    ],
)
def test_a_set_that_cannot_be_served_is_refused(tiny_pipeline, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(prompts, **options)
