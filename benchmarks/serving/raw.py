"""The ceiling: the sampler alone, always as full as it can be, on the simulated accelerator. No queue, no thread, no file, no HTTP."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

from benchmarks.serving.accelerator import ROWS, STEP_S, Request, call_s
from benchmarks.serving.client import Answer
from benchmarks.serving.load import payload
from benchmarks.serving.simulated import Simulated
from models.sampler import advance
from worker.calibration import StepCost

TOKENS = 50  # of a row, whatever its duration: the canvas


class Canvas(Simulated):
    """The simulated model with rows of one length."""

    def num_tokens(self, _: float) -> int:
        return TOKENS

    def measure(self) -> StepCost:
        return StepCost(self.step_s, 1e-12, ROWS * TOKENS)


def throughput(wanted: Iterator[Request], seconds: float) -> float:
    """Return sounds per second."""
    model = Canvas(STEP_S)
    coming = (row for request in wanted for row in model.rows(payload(**dataclasses.asdict(request))))
    running, waiting = [], next(coming)
    started = time.perf_counter()
    done = 0
    while (elapsed := time.perf_counter() - started) < seconds:
        while sum(row.passes for row in [*running, waiting]) <= ROWS:
            running.append(waiting)
            waiting = next(coming)
        advance(running, model.velocity)
        done += sum(row.done for row in running)
        running = [row for row in running if not row.done]
    return done / elapsed


def ideal(wanted: Iterator[Request], times: Sequence[float]) -> list[Answer]:
    """Return what a server that costs nothing would answer, by a clock that is only counted: rows join before any step and leave after their last."""
    coming = [(Answer(at, sent=at), request) for at, request in zip(times, wanted, strict=False)]
    answers = [answer for answer, _ in coming]
    coming.reverse()
    running: list[tuple[Answer, Request, int]] = []  # with the steps it has left
    now = 0.0
    while coming or running:
        rows = sum(request.rows for _, request, _ in running)
        while coming and coming[-1][0].intended <= now and rows + coming[-1][1].rows <= ROWS:
            answer, request = coming.pop()
            running.append((answer, request, request.num_inference_steps))
            rows += request.rows
        if not running:
            now = coming[-1][0].intended
            continue
        now += call_s(rows)
        running = [(answer, request, left - 1) for answer, request, left in running]
        for answer, _, left in running:
            if not left:
                answer.done = now
        running = [entry for entry in running if entry[2]]
    return answers
