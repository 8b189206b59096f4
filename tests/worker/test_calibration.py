"""The cost of a step is measured at start and learned from later steps."""

from __future__ import annotations

import pytest
import torch

from models.networks.condition_encoder import ConditionTokens
from models.sampler import SamplerRow
from tests.support.workplace import NONE, Toy
from worker.calibration import MAX_ROWS, MIN_TRY_S, TRY_STEPS, CostLearner, StepCost, measure
from worker.engine import Engine, SamplingRequest

ROW = 100


class Machine:
    """Takes steps of `fixed_s` plus `row_s` per row, for as many rows as are wanted and allowed."""

    def __init__(self, fixed_s, row_s, *, limit_rows=1):
        self.fixed_s, self.row_s, self.now, self.steps = fixed_s, row_s, 0.0, []
        cost = StepCost(0.0, 9.0 / ROW, limit_rows * ROW)  # measured while the machine was busy
        self.learner = CostLearner(cost, ROW, clock=lambda: self.now)

    def run(self, *, rows, seconds):
        end = self.now + seconds
        while self.now < end:
            tokens = min(rows * ROW, max(ROW, self.learner.limit))
            took_s = self.fixed_s + tokens / ROW * self.row_s
            self.now += took_s
            self.steps.append(tokens // ROW)
            self.learner.observe(tokens, took_s)


def test_a_limit_measured_on_a_busy_machine_recovers():
    machine = Machine(fixed_s=0.1, row_s=0.005)
    machine.run(rows=200, seconds=240)
    assert machine.learner.limit >= 32 * ROW
    assert machine.learner.cost.step_s == pytest.approx(0.1 + machine.learner.limit / ROW * 0.005, rel=0.05)
    assert max(machine.steps) <= MAX_ROWS


def test_a_larger_batch_that_is_not_faster_is_rarely_tried():
    machine = Machine(fixed_s=0.0, row_s=0.02)
    machine.run(rows=200, seconds=600)
    assert machine.learner.cost.limit == ROW
    assert sum(rows > 1 for rows in machine.steps) < 0.01 * len(machine.steps)


def test_nothing_is_tried_without_demand():
    machine = Machine(fixed_s=0.1, row_s=0.001, limit_rows=4)
    machine.run(rows=3, seconds=100)
    assert machine.learner.limit == 4 * ROW
    machine.run(rows=4, seconds=1)  # the batch is full, but no more rows come
    for _ in range(TRY_STEPS):
        machine.learner.observe(4 * ROW, 0.104)
    assert machine.learner.cost.limit == 4 * ROW


def test_the_limit_stays_below_what_had_no_memory():
    machine = Machine(fixed_s=0.1, row_s=0.001)
    machine.learner.bound(2 * ROW)
    machine.run(rows=200, seconds=10 * MIN_TRY_S)
    assert machine.learner.limit == 2 * ROW


def test_estimates_follow_the_steps():
    machine = Machine(fixed_s=0.0, row_s=0.01)
    assert machine.learner.cost.step_s == pytest.approx(9.0)
    machine.run(rows=1, seconds=20)
    assert machine.learner.cost.step_s == pytest.approx(0.01, rel=0.01)


def test_the_engine_learns_from_its_steps():
    seen = []
    cost = measure(lambda rows: 1.0, 10)
    learner = CostLearner(cost, 10)

    def observe(tokens, seconds):
        seen.append((tokens, seconds > 0))
        return 50

    learner.observe = observe
    engine = Engine(Toy(), limit=1, learner=learner)
    condition = ConditionTokens(torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
    engine.model.prompts["rain"] = 1.0

    def prepare():
        return [SamplerRow(torch.zeros(1, 10, 1), [condition], NONE, 2, 1.0) for _ in range(2)]

    engine.submit(SamplingRequest(prepare, lambda n, sound: n, 2, 10, 1.0))
    while engine.ended.empty():
        engine.turn()
    engine.stop()
    assert seen == [(10, True), (20, True), (10, True)]
    assert engine.limit == 50
