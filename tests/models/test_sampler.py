import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from models.condition_encoder import ConditionTokens
from models.prompts import Prompt
from models.sampler import Row, advance

EMPTY = ConditionTokens(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.bool))


def noise(length, seed):
    return torch.randn(length, 256, generator=torch.Generator().manual_seed(seed))


def run(rows, velocity):
    forwards = 0
    while any(not row.done for row in rows):
        forwards += advance([row for row in rows if not row.done], velocity)
    return forwards


def test_first_step_is_the_euler_step_of_diffusers():
    start = noise(5, 0)
    row = Row(start, EMPTY, EMPTY, 1, 1.0)
    advance([row], lambda x, t, c, m: torch.sin(x))
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0])
    oracle = scheduler.step(
        -torch.sin(start[None]), scheduler.timesteps[0], start[None]
    ).prev_sample  # its v points to noise
    torch.testing.assert_close(row.latents, oracle[0])


@pytest.mark.parametrize("steps", [20, 40])
def test_error_falls_with_the_square_of_the_step(steps):
    def error(n):
        row = Row(torch.ones(1, 1, dtype=torch.float64), EMPTY, EMPTY, n, 1.0)
        run([row], lambda x, t, c, m: 2 * t[:, None, None] * x)  # solution: x0 exp(t^2)
        return abs(float(row.latents) - math.e)

    assert error(steps) / error(2 * steps) == pytest.approx(4.0, rel=0.2)


def test_a_row_in_company_equals_the_row_alone(tiny_pipeline):
    pipe = tiny_pipeline
    dog, cats = (
        pipe.condition_encoder.encode([pipe.encode_conditions([Prompt(p)] * k, 1)])
        for p, k in (("a dog", 1), ("a cat", 2))
    )
    empty = pipe.condition_encoder.encode([[]])

    def rows():
        return [
            Row(noise(25, 1), dog, empty, 7, 4.0, (0.0, 0.6)),
            Row(noise(40, 2), cats, empty, 9, 1.0),
            Row(noise(13, 3), dog, empty, 3, 2.0),
        ]

    alone, together = rows(), rows()
    with torch.inference_mode():
        for row in alone:
            run([row], pipe.denoiser)
        run(together[::-1], pipe.denoiser)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a.latents, b.latents, atol=1e-4, rtol=0)


def test_default_request_costs_at_most_20_row_forwards(tiny_pipeline):
    m = tiny_pipeline.manifest
    row = Row(noise(5, 0), EMPTY, EMPTY, m.num_inference_steps, m.guidance_scale, m.guidance_interval)
    assert run([row], lambda x, t, c, m: x) <= 20


def test_guidance_of_one_costs_no_second_pass():
    assert run([Row(noise(5, 0), EMPTY, EMPTY, 6, 1.0)], lambda x, t, c, m: x) == 6


def test_a_finished_row_is_refused():
    row = Row(noise(5, 0), EMPTY, EMPTY, 1, 1.0, step=1)
    with pytest.raises(ValueError, match="finished"):
        advance([row], lambda x, t, c, m: x)
