"""The engine alone: no queue, no Redis."""

from __future__ import annotations

import threading

import pytest
import torch

from clipsynth.services.processes import wait_until
from models.sampler import RowWindow, SamplerRow
from tests.support.engine import EMPTY, TIMEOUT_S, Toy, arrive, condition, constant, finish, run, ticket
from worker.calibration import measure
from worker.engine import weight


def test_rows_join_and_leave_between_steps(engines):
    model = Toy()
    engine = engines(model)
    long, short = ticket(1.0, steps=6), ticket(2.0, steps=2, rows=2)
    engine.submit(long)
    while long.steps_done < 2:
        engine.turn()
    engine.submit(short)
    arrive(engine, 1)
    while not (long.ended and short.ended):
        engine.turn()
    assert model.calls.count(3) == 2
    assert set(model.calls) == {1, 3}
    assert short.results[1] == pytest.approx([2.0] * 6)
    assert long.results[0] == pytest.approx([1.0] * 6)


def test_a_network_call_stays_within_the_limit(engines):
    model = Toy()
    tickets = [ticket(n, rows=2, tokens=5) for n in range(4)]
    engine = engines(model, limit=15)
    for each in tickets:
        engine.submit(each)
    arrive(engine, len(tickets))
    finish(engine, *tickets)
    assert max(model.calls) == 3
    assert all(len(t.results) == 2 for t in tickets)


def test_a_row_larger_than_the_limit_runs_alone(engines):
    big = ticket(tokens=50)
    run(engines(Toy(), limit=10), big, ticket())
    assert big.results[0] == pytest.approx([1.0] * 100)


def test_a_row_without_guidance_costs_no_second_pass(engines):
    model = Toy()
    run(engines(model), ticket(steps=1), ticket(steps=1, guidance=3.0))
    assert sum(model.calls) == 3


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] can't allocate memory")],
)
def test_out_of_memory_halves_the_batch_and_loses_nothing(engines, error):
    def velocity(x, _t, c, _m):
        if len(x) > 2:
            raise error
        return c.tokens[:, :1, :1].expand_as(x)

    engine = engines(Toy(velocity))
    tickets = [ticket(n, rows=2, steps=3) for n in range(4)]
    for each in tickets:
        engine.submit(each)
    arrive(engine, 4)  # of two tickets at once, or no batch is too large
    finish(engine, *tickets)
    assert engine.limit <= 8
    for n, each in enumerate(tickets):
        assert each.results[1] == pytest.approx([n] * 6)
    other = engines(Toy(velocity))
    run(other, ticket(rows=8))
    assert other.limit == 6  # 8 rows of 3 tokens do not fit, nor do 4


def test_a_row_too_large_alone_fails(engines):
    def velocity(*_):
        raise torch.OutOfMemoryError("out of memory")

    tickets = [ticket(), ticket()]
    run(engines(Toy(velocity)), *tickets)
    assert [type(t.error) for t in tickets] == [torch.OutOfMemoryError] * 2


def test_out_of_memory_in_decoding_retries_row_by_row(engines):
    class Small(Toy):
        def decode(self, rows, duration_s):
            if len(rows) > 1:
                raise torch.OutOfMemoryError("out of memory")
            return super().decode(rows, duration_s)

    each = ticket(3.0, rows=3)
    run(engines(Small()), each)
    assert each.error is None
    assert each.results[2] == pytest.approx([3.0] * 6)


def test_only_the_broken_job_fails(engines):
    def velocity(x, _t, c, _m):
        if (c.tokens == 13).any():
            raise RuntimeError("unlucky")
        return c.tokens[:, :1, :1].expand_as(x)

    good, bad, other = ticket(1.0, rows=2), ticket(13.0), ticket(2.0)
    run(engines(Toy(velocity)), good, bad, other)
    assert str(bad.error) == "unlucky"
    assert (good.error, other.error) == (None, None)
    assert other.results[0] == pytest.approx([2.0] * 6)


def test_a_sound_that_is_not_finite_fails_alone(engines):
    bad, good = ticket(float("nan")), ticket(1.0)
    run(engines(Toy()), bad, good)
    assert "finite" in str(bad.error)
    assert good.results[0] == pytest.approx([1.0] * 6)


@pytest.mark.parametrize("part", ["prepare", "deliver"])
def test_an_error_on_a_side_thread_ends_only_its_job(engines, part):
    def broken(*_):
        raise OSError("the disk is full")

    bad, good = ticket(**{part: broken}), ticket()
    run(engines(Toy()), bad, good)
    assert isinstance(bad.error, OSError)
    assert good.error is None


@pytest.mark.parametrize("part", ["velocity", "prepare", "deliver"])
def test_a_lost_device_ends_the_engine_and_no_job(engines, part):
    def lost(*_):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    engine = engines(Toy(lost) if part == "velocity" else Toy())
    tickets = [ticket(), ticket() if part == "velocity" else ticket(**{part: lost})]
    for each in tickets:
        engine.submit(each)
    told = (
        3 if part == "prepare" else 4
    )  # the rows of each and that its errand is over; the lost one has no rows
    assert wait_until(lambda: engine._inbox.qsize() == told, timeout_s=TIMEOUT_S)
    with pytest.raises(torch.AcceleratorError):
        finish(engine, *tickets)
    assert all(each.error is None for each in tickets)


def test_a_canceled_job_leaves_before_its_next_step(engines):
    engine = engines(Toy())
    unwanted, other = ticket(steps=100), ticket(steps=5)
    engine.submit(unwanted)
    engine.submit(other)
    while not unwanted.steps_done:
        engine.turn()
    done = unwanted.steps_done
    engine.cancel(unwanted)
    engine.turn()
    assert unwanted.ended
    assert unwanted.steps_done == done
    while not other.ended:
        engine.turn()
    assert not unwanted.results


def test_a_canceled_job_ends_after_its_side_thread(engines):
    engine = engines(Toy())
    begun, go_on = threading.Event(), threading.Event()

    def deliver(*_):
        begun.set()
        assert go_on.wait(TIMEOUT_S)

    slow = ticket(steps=1, deliver=deliver)
    engine.submit(slow)
    while not slow.steps_done:
        engine.turn()
    assert begun.wait(TIMEOUT_S)
    engine.cancel(slow)
    engine.turn()
    assert not slow.ended
    go_on.set()
    while not slow.ended:
        engine.turn()


def test_the_load_is_the_cost_of_the_next_step():
    rows = [SamplerRow(torch.zeros(1, 3, 2), [EMPTY], EMPTY, 4, g) for g in (1.0, 2.0)]
    assert weight(rows) == 9
    assert weight([]) == 0
    each = ticket(rows=2, tokens=3)
    assert each.load() == 12
    each.rows = [SamplerRow(torch.zeros(1, 3, 2), [EMPTY], EMPTY, steps, 2.0, step=1) for steps in (4, 6)]
    assert [each.load(ahead) for ahead in (0, 3, 5)] == [12, 6, 0]
    each.rows[0].step = 0
    assert each.load(5) == 6


def test_a_job_with_a_shortcut_takes_no_step(engines):
    model = Toy()
    engine = engines(model)
    shortcut = ticket(rows=2)
    shortcut.shortcut = lambda: iter(["first", "second"])
    failing = ticket()
    failing.shortcut = lambda: iter([1 / 0])
    run(engine, shortcut, failing, ticket(steps=2))
    assert shortcut.results == {0: "first", 1: "second"}
    assert isinstance(failing.error, ZeroDivisionError)
    assert model.calls == [1, 1]  # of the third
    assert shortcut.load() == 0


def test_the_limit_is_the_smallest_batch_near_best_throughput():
    cost = measure(lambda rows: 0.010 if rows <= 32 else 0.010 * rows / 32, 5)
    assert cost.limit == 32 * 5
    cost = measure(lambda rows: 0.001 + 0.010 * rows, 5)
    assert cost.limit == 5
    assert cost.fixed_s == pytest.approx(0.001)
    assert cost.token_s == pytest.approx(0.002)


def test_the_limit_is_no_more_than_what_fits_in_memory():
    def step_s(rows):
        if rows > 4:
            raise torch.OutOfMemoryError("out of memory")
        return 0.01

    assert measure(step_s, 5).limit == 20


def test_a_row_of_many_passes_takes_as_much_of_the_limit(engines):
    model = Toy()

    def make():
        conds = [condition(n) for n in (1, 2, 3)]
        return [
            SamplerRow(torch.zeros(1, 3, 2), conds, EMPTY, 2, 2.0, weights=(1.0, 1.0, 1.0)) for _ in range(3)
        ]

    each = ticket(rows=3, prepare=make)
    run(engines(model, limit=2 * 4 * 3), each, ticket(5.0))
    assert max(model.calls) == 8
    assert each.results[2] == pytest.approx([12.0] * 6)


def test_components_are_decoded_a_few_at_a_time(engines):
    decoded = []

    class Counting(Toy):
        def decode(self, rows, duration_s):
            decoded.append(sum(row.components for row in rows))
            return super().decode(rows, duration_s)

    def make():
        conds = [condition(n) for n in (1, 2, 3)]
        return [
            SamplerRow(torch.zeros(3, 4, 2), conds, EMPTY, 2, 1.0, weights=(1.0, 1.0, 1.0)) for _ in range(5)
        ]

    each = ticket(rows=5, prepare=make)
    run(engines(Counting()), each, ticket(4.0, tokens=4))
    assert sorted(decoded) == [1, 3, 6, 6]
    assert each.results[4] == pytest.approx([1.0] * 8 + [2.0] * 8 + [3.0] * 8)


def test_a_group_that_is_out_of_memory_takes_smaller_calls(engines):
    def velocity(x, _t, c, _m):
        if len(x) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return constant(x, _t, c, _m)

    def make():
        shares = torch.ones(3, 1)
        made = [RowWindow(torch.arange(n, n + 3), shares, [condition(2)], EMPTY) for n in range(8)]
        return [SamplerRow(torch.zeros(1, 10, 2), [condition(2)], EMPTY, 2, 1.0, windows=made)]

    model = Toy(velocity)
    engine = engines(model)
    each = ticket(tokens=3, prepare=make)
    run(engine, each)
    assert (each.error, engine.group_rows, engine.limit) == (None, 4, 1000)
    assert each.results[0] == pytest.approx([2.0] * 20)
    assert model.calls[2:] == [4, 4, 4, 4]
