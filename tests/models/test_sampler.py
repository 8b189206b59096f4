import math
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from models.bundle import Manifest
from models.conditioning.prompts import Prompt
from models.networks.condition_encoder import ConditionTokens
from models.sampler import SamplerRow, advance
from models.schedule import share_at, shift_for, time_at

EMPTY = ConditionTokens(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.bool))


def noise(length, seed):
    return torch.randn(1, length, 256, generator=torch.Generator().manual_seed(seed))


def run(rows, velocity):
    forwards = 0
    while any(not row.done for row in rows):
        forwards += advance([row for row in rows if not row.done], velocity)
    return forwards


def test_the_first_step_equals_diffusers_euler_step():
    start = noise(5, 0)
    row = SamplerRow(start, [EMPTY], EMPTY, 1, 1.0)
    advance([row], lambda x, t, c, m: torch.sin(x))
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0])
    oracle = scheduler.step(
        -torch.sin(start), scheduler.timesteps[0], start
    ).prev_sample  # its v points to noise
    torch.testing.assert_close(row.latents, oracle)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("steps", [20, 40])
def test_the_error_falls_with_the_square_of_the_step(steps, shift):
    def error(n):
        start = torch.ones(1, 1, 1, dtype=torch.float64)
        row = SamplerRow(start, [EMPTY], EMPTY, n, 1.0, time_shift=shift)
        run([row], lambda x, t, c, m: 2 * t[:, None, None] * x)  # solution: x0 exp(t^2)
        return abs(float(row.latents) - math.e)

    assert error(steps) / error(2 * steps) == pytest.approx(4.0, rel=0.2)


def test_few_steps_have_less_time_shift():
    shifts = {n: shift_for(n / 8, 8.0) for n in (100, 8, 4, 2)}
    assert list(shifts.values()) == [8.0, 8.0, 2.75, 1.4375]
    for n in (2, 4):  # the last step is not most of the way
        assert time_at(1 - 1 / n, shifts[n]) > 0.4


def test_a_time_shift_moves_steps_towards_the_noise():
    times = [time_at(n / 8, 8.0) for n in range(9)]
    assert times[0] == 0
    assert times[-1] == 1
    assert times == sorted(times)
    assert sum(t < 0.2 for t in times) == 6
    assert [share_at(t, 8.0) for t in times] == pytest.approx([n / 8 for n in range(9)])
    assert [time_at(n / 8, 1.0) for n in range(9)] == [n / 8 for n in range(9)]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=8.0)  # its times are shares of noise
    scheduler.set_timesteps(sigmas=[1 - n / 8 for n in range(8)])
    assert [1 - float(t) for t in scheduler.sigmas] == pytest.approx(times, abs=1e-6)


def test_a_manifest_has_the_share_of_guided_steps():
    manifest = Manifest("x", 1, 5, guidance_interval=(0.0, 0.65))
    assert manifest.guided_share == pytest.approx(0.65)
    shifted = replace(manifest, time_shift=8.0)
    assert shifted.guided_share == pytest.approx(share_at(0.65, 8.0))
    assert shifted.version != manifest.version


def test_a_batched_row_equals_the_row_alone(tiny_pipeline):
    pipe = tiny_pipeline
    dog, cats, rain = (
        pipe.condition_encoder.encode([pipe.encode_conditions([Prompt(p)] * k, 1)])
        for p, k in (("a dog", 1), ("a cat", 2), ("rain", 1))
    )
    empty = pipe.condition_encoder.encode([[]])

    def rows():
        return [
            SamplerRow(noise(25, 1), [dog], empty, 7, 4.0, (0.0, 0.6)),
            SamplerRow(noise(40, 2), [cats], empty, 9, 1.0),
            SamplerRow(noise(13, 3), [dog], empty, 3, 2.0),
            SamplerRow(noise(31, 4), [dog, cats, rain], empty, 6, 3.0, (0.0, 0.6), weights=(1.0, 0.5, 2.0)),
            SamplerRow(noise(18, 5), [dog, rain], empty, 4, 1.0, weights=(2.0, 1.0)),
            SamplerRow(
                noise(22, 6).repeat(2, 1, 1), [rain, cats], empty, 5, 3.0, (0.0, 0.6), weights=(1.0, 0.3)
            ),
        ]

    alone, together, again = rows(), rows(), rows()
    with torch.inference_mode():
        for row in (*alone, *again):
            run([row], pipe.denoiser)
        run(together[::-1], pipe.denoiser)
    for a, b, c in zip(alone, together, again, strict=True):
        torch.testing.assert_close(a.latents, b.latents, atol=1e-4, rtol=0)
        assert torch.equal(a.latents, c.latents)


def condition(value):
    return ConditionTokens(torch.full((1, 1, 4), float(value)), torch.ones(1, 1, dtype=torch.bool))


def by_condition(x, _t, c, _m):
    """A velocity that depends on the voice and on the condition."""
    return torch.sin(x) * c.tokens[:, :1, :1] + c.tokens[:, :1, :1].square()


@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_a_row_follows_composable_diffusion(scale):
    start, weights = noise(5, 0), (1.0, 0.5, 2.0)
    row = SamplerRow(start, [condition(n) for n in (1, 2, 3)], condition(-1), 1, scale, weights=weights)
    assert run([row], by_condition) == (4 if scale > 1 else 3)
    without, *v = (by_condition(start, None, condition(n), None) for n in (-1, 1, 2, 3))
    expected = (
        without + scale * sum(w * (x - without) for w, x in zip(weights, v, strict=True))
        if scale > 1
        else sum(w * x for w, x in zip(weights, v, strict=True)) / sum(weights)
    )
    torch.testing.assert_close(row.latents, start + expected)


def test_components_are_independent():
    starts = [noise(5, seed) for seed in (0, 1)]
    row = SamplerRow(
        torch.cat(starts), [condition(1), condition(2)], EMPTY, 4, 3.0, (0.0, 0.5), weights=(1.0, 0.2)
    )
    assert run([row], by_condition) == 2 * 2 * 2 + 2 * 2
    for n, start in enumerate(starts):
        own = SamplerRow(start, [condition(n + 1)], EMPTY, 4, 3.0, (0.0, 0.5))
        run([own], by_condition)
        assert torch.equal(row.latents[n], own.latents[0])


def test_a_network_error_leaves_every_row_unchanged():
    rows = [
        SamplerRow(noise(5, 0), [condition(1)], EMPTY, 4, 3.0),
        SamplerRow(noise(4, 1), [condition(1), condition(2)], EMPTY, 4, 3.0, weights=(1.0, 1.0)),
        SamplerRow(
            noise(4, 2).repeat(2, 1, 1), [condition(1), condition(2)], EMPTY, 4, 3.0, weights=(1.0, 1.0)
        ),
    ]
    before = [row.latents.clone() for row in rows]

    def broken(*_):
        raise RuntimeError("unlucky")

    with pytest.raises(RuntimeError, match="unlucky"):
        advance(rows, broken)
    assert [row.step for row in rows] == [0, 0, 0]
    assert all(torch.equal(row.latents, start) for row, start in zip(rows, before, strict=True))


@pytest.mark.parametrize(
    ("components", "conditions", "weights"), [(1, 2, (1.0,)), (2, 3, (1.0,) * 3), (2, 1, (1.0,))]
)
def test_components_conditions_and_weights_must_fit(components, conditions, weights):
    with pytest.raises(ValueError, match="do not fit"):
        SamplerRow(torch.zeros(components, 3, 2), [EMPTY] * conditions, EMPTY, 1, 1.0, weights=weights)


def test_a_default_request_costs_at_most_20_row_forwards(tiny_pipeline):
    m = tiny_pipeline.manifest
    row = SamplerRow(
        noise(5, 0), [EMPTY], EMPTY, m.num_inference_steps, m.guidance_scale, m.guidance_interval
    )
    assert run([row], lambda x, t, c, m: x) <= 20


def test_guidance_of_one_costs_no_second_pass():
    assert run([SamplerRow(noise(5, 0), [EMPTY], EMPTY, 6, 1.0)], lambda x, t, c, m: x) == 6


def test_a_finished_row_is_rejected():
    row = SamplerRow(noise(5, 0), [EMPTY], EMPTY, 1, 1.0, step=1)
    with pytest.raises(ValueError, match="finished"):
        advance([row], lambda x, t, c, m: x)
