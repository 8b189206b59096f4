"""A toy model for the engine, and steps of an engine."""

from __future__ import annotations

import torch

from clipsynth.services.processes import wait_until
from models.networks.condition_encoder import ConditionTokens
from models.sampler import SamplerRow
from worker.engine import SamplingRequest

TIMEOUT_S = 60
EMPTY = ConditionTokens(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.bool))


def constant(x, _t, c, _m):
    return c.tokens[:, :1, :1].expand_as(x)


class Toy:
    """A model without a network: velocity is the condition's first value, a sound its latents."""

    def __init__(self, velocity=None):
        self.calls = []
        self._velocity = velocity or (constant)

    def velocity(self, tokens, t, conditions, mask):
        self.calls.append(len(tokens))
        return self._velocity(tokens, t, conditions, mask)

    def decode(self, rows, duration_s):
        return [row.latents.flatten().numpy() for row in rows]


def condition(value):
    return ConditionTokens(torch.full((1, 1, 4), float(value)), torch.ones(1, 1, dtype=torch.bool))


def ticket(value=1.0, *, rows=1, steps=2, tokens=3, guidance=1.0, prepare=None, deliver=None):
    def make():
        return [
            SamplerRow(torch.zeros(1, tokens, 2), [condition(value)], EMPTY, steps, guidance)
            for _ in range(rows)
        ]

    return SamplingRequest(prepare or make, deliver or (lambda n, wave: wave), rows, tokens, 1.0)


def run(engine, *tickets):
    """Run until all of these have ended."""
    for each in tickets:
        engine.submit(each)
    finish(engine, *tickets)


def finish(engine, *tickets):
    while not all(each.ended for each in tickets):
        engine.turn()
    assert {id(engine.ended.get(timeout=0)) for _ in tickets} == {id(each) for each in tickets}


def arrive(engine, count):
    """Wait until so many submitted tickets and, of each, that its rows are made, lie before the engine."""
    assert wait_until(lambda: engine._inbox.qsize() == 2 * count, timeout_s=TIMEOUT_S)
