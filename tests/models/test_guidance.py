"""Distilled guidance: one pass of the network within its range, two outside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models import ClipSynthPipeline, Prompt
from models.networks.condition_encoder import ConditionTokens
from models.sampler import SamplerRow, advance
from tests.support.tiny import build_tiny_pipeline

EMPTY = ConditionTokens(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.bool))
STEPS = 4  # of them 3 with guidance: t < 0.65


@pytest.fixture(scope="module")
def pipe():
    return build_tiny_pipeline(guidance_scales=(1.0, 10.0))


def condition(value):
    return ConditionTokens(torch.full((1, 1, 4), float(value)), torch.ones(1, 1, dtype=torch.bool))


def by_condition(x, _t, c, _m):
    return torch.sin(x) * c.tokens[:, :1, :1] + c.tokens[:, :1, :1].square()


def noise(length, seed):
    return torch.randn(1, length, 256, generator=torch.Generator().manual_seed(seed))


def rows(pipe, *prompts, **options):
    defaults = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "duration_s": 0.5}
    asked = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    return pipe.prepare_rows(asked, generators=[torch.Generator().manual_seed(0)], **(defaults | options))


def spent(pipe, made):
    forwards = 0
    with torch.inference_mode():
        while running := [row for row in made if not row.done]:
            told = sum(row.passes for row in running)
            assert advance(running, pipe.denoiser) == told
            forwards += told
    return forwards


@pytest.mark.parametrize(
    ("prompts", "options", "forwards"),
    [
        (["a dog"], {}, STEPS),
        (["a dog", Prompt("rain", 0.5)], {}, STEPS),
        (["a dog"], {"guidance_scale": 10.0, "attributes": {"pitch": 0.9}}, STEPS),
        (["a dog"], {"guidance_scale": 10.5}, STEPS + 3),
        (["a dog"], {"guidance_scale": 1.0}, STEPS),
        (["a dog", Prompt("rain", -1.0)], {}, STEPS + 3),
        (["a dog", "rain"], {"composition": "compose"}, 2 * STEPS + 3),
        (["a dog"], {"composition": "compose"}, STEPS),
        ([Prompt("a dog", 2.0)], {"composition": "compose"}, STEPS + 3),
        (["a dog", "rain"], {"composition": "mix"}, 2 * STEPS),
        (["a dog", "rain", Prompt("wind", -1.0)], {"composition": "mix"}, 2 * STEPS + 2 * 3),
    ],
)
def test_a_request_costs_its_number_of_forwards(pipe, prompts, options, forwards):
    assert spent(pipe, rows(pipe, *prompts, **options)) == forwards


def test_without_distillation_guidance_takes_two_passes(tiny_pipeline):
    assert tiny_pipeline.distilled_guidance_range == ()
    assert spent(tiny_pipeline, rows(tiny_pipeline, "a dog")) == STEPS + 3


def test_guidance_outside_distilled_times_takes_two_passes(tmp_path):
    other = build_tiny_pipeline(guidance_scales=(1.0, 10.0))
    times = {"guidance_times": [0.0, 0.5]}
    other.register_modules(condition_encoder=other.condition_encoder.changed(**times))
    assert other.distilled_guidance_range == ()
    assert spent(other, rows(other, "a dog")) == STEPS + 3
    other.manifest = replace(other.manifest, guidance_interval=(0.0, 0.5))
    assert other.distilled_guidance_range == (1.0, 10.0)
    assert spent(other, rows(other, "a dog")) == STEPS
    other.save_pretrained(tmp_path)
    assert ClipSynthPipeline.from_pretrained(tmp_path).distilled_guidance_range == (1.0, 10.0)


def test_guided_conditions_act_only_in_the_interval():
    start = noise(5, 0)
    row = SamplerRow(start, [condition(1)], condition(-1), 2, 3.0, (0.0, 0.5), guided_conds=[condition(7)])
    advance([row], by_condition)
    first = by_condition(start, None, condition(7), None)
    assert torch.equal(row.latents, start + first / 2)
    then = row.latents
    advance([row], by_condition)
    second = by_condition(then, None, condition(1), None)
    torch.testing.assert_close(row.latents, then + (1.5 * second - 0.5 * first) / 2)


@pytest.mark.parametrize("given", [2, 3])
def test_there_is_a_guided_condition_for_each_component(given):
    with pytest.raises(ValueError, match="guided conditions do not fit"):
        SamplerRow(
            torch.zeros(1, 3, 2), [EMPTY] * 2, EMPTY, 1, 2.0, weights=(1.0, 1.0), guided_conds=[EMPTY] * given
        )


def test_a_guidance_scale_is_no_attribute(pipe):
    def sound(**options):
        g = torch.Generator().manual_seed(0)
        return pipe("a dog", duration_s=0.5, num_inference_steps=2, generator=g, **options).audios[0]

    sounds = [sound(guidance_scale=scale) for scale in (1.0, 3.0, 6.0)]
    assert all(np.abs(a - b).max() > 0 for i, a in enumerate(sounds) for b in sounds[:i])
    one, *others = (
        sound(guidance_scale=3.0, composition=composition) for composition in ("set", "compose", "mix")
    )
    assert all(np.array_equal(one, other) for other in others)
    assert "guidance" not in pipe.attributes
    with pytest.raises(ValueError, match="takes no attribute 'guidance'"):
        sound(attributes={"guidance": 0.5})


def test_rows_with_one_and_two_passes_share_a_batch(pipe):
    def made():
        return [
            *rows(pipe, "a dog"),
            *rows(pipe, "a dog", Prompt("rain", -1.0), num_inference_steps=6),
            *rows(pipe, "a cat", guidance_scale=20.0, duration_s=0.9),
            *rows(pipe, "rain", "a dog", composition="mix", num_inference_steps=3, attributes={"pitch": 0.1}),
            *rows(pipe, "rain", "a dog", composition="compose"),
            *rows(pipe, "rain", "a dog", duration_s=0.7),
            *rows(pipe, "rain", guidance_scale=1.0),
        ]

    alone, together, again = made(), made(), made()
    for row in (*alone, *again):
        spent(pipe, [row])
    spent(pipe, together[::-1])
    for a, b, c in zip(alone, together, again, strict=True):
        torch.testing.assert_close(a.latents, b.latents, atol=1e-4, rtol=0)
        assert torch.equal(a.latents, c.latents)


def test_scalars_are_kept_by_name_and_new_ones_are_zero(pipe):
    encoder = pipe.condition_encoder
    fewer = encoder.changed(scalars=["pitch", "guidance"])
    for n, name in enumerate(fewer.config.scalars):
        k = list(encoder.config.scalars).index(name)
        assert torch.equal(fewer.scalar_projection[n], encoder.scalar_projection[k])
    assert "scalar_projection" not in encoder.changed(scalars=[]).state_dict()
    assert not encoder.changed(scalars=["pitch", "agreement"]).scalar_projection[1].any()
    assert not encoder.changed(scalars=[]).changed(scalars=["guidance"]).scalar_projection.any()
