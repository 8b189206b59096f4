"""The load generator and its statistics, against a stand-in for a server."""

from __future__ import annotations

import asyncio
import itertools
import math

import pytest

from benchmarks.load.client import HttpClient, TimedAnswer, figures, measure
from benchmarks.load.race import group_s, groups
from benchmarks.load.worker import raw
from benchmarks.load.workload import ROWS, STEP_S, SoundRequest, poisson, requests


def first(load, repetition, count):
    return list(itertools.islice(requests(load, repetition), count))


def test_all_systems_get_the_same_requests_at_the_same_times():
    assert first("mixed", 0, 50) == first("mixed", 0, 50) != first("mixed", 1, 50)
    assert poisson(20, 30, 0) == poisson(20, 30, 0) != poisson(20, 30, 1)
    slow, fast = poisson(10, 30, 0), poisson(20, 30, 0)
    assert fast[: len(slow)] == pytest.approx([at / 2 for at in slow])
    assert len(poisson(100, 100, 0)) == pytest.approx(10_000, abs=400)
    with pytest.raises(ValueError, match="uniform, mixed"):
        next(requests("other", 0))


def test_the_mixed_load_has_the_documented_mix():
    asked = first("mixed", 0, 2000)
    assert {r.num_inference_steps for r in asked} == set(range(8, 51))
    assert {r.duration_s for r in asked} == {2.0, 3.0, 4.0, 5.0}
    assert sum(r.rows for r in asked) == pytest.approx(1.5 * len(asked), rel=0.05)


def test_latency_counts_from_the_due_time_and_unanswered_count():
    answers = [TimedAnswer(n / 10, sent=n / 10 + 0.5, done=n / 10 + 1.0) for n in range(19)] + [
        TimedAnswer(1.9)
    ]
    found = figures(answers, 0.0, 2.0)
    assert (found.p50_s, found.p95_s, found.unanswered) == (pytest.approx(1.0), math.inf, 1)
    assert found.throughput == pytest.approx(
        (11 + 4.4) / 2
    )  # eleven whole ones, eight by a part of their second


def test_a_slow_server_is_charged_for_the_waiting_of_clients():
    async def answer_one_by_one(_):
        async with turn:
            await asyncio.sleep(0.02)
        return True

    times = [n * 0.005 for n in range(40)]
    turn = asyncio.Lock()
    found = measure(answer_one_by_one, requests("uniform"), times=times, warm_up_s=0.1, seconds=0.1)
    assert found.requests == 20
    assert found.unanswered == 0
    assert found.p50_s > 0.3  # the thirtieth waits for the thirty before it


def test_a_closed_loop_keeps_its_requests_in_flight():
    under_way, most = 0, 0

    async def answer(_):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return True

    found = measure(answer, requests("uniform"), in_flight=7, warm_up_s=0.05, seconds=0.2)
    assert most == 7
    assert found.unanswered == 0
    assert 7 < found.throughput <= 700


def test_the_client_reads_both_framings_and_keeps_connections():
    framings = (
        b"200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"503 Busy\r\nContent-Length: 0\r\n\r\n",
    )
    connections = 0

    async def serve(reader, writer):
        nonlocal connections
        connections += 1
        for framing in framings:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            writer.write(b"HTTP/1.1 " + framing)
        writer.close()  # as servers do with what they take for idle

    async def talk():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        http = HttpClient(server.sockets[0].getsockname()[1], "/predict")
        answers = [await http.ask(b"{}") for _ in range(4)]
        await http.close()
        server.close()
        await server.wait_closed()
        return [(answer.status, answer.body) for answer in answers]

    assert asyncio.run(talk()) == [(200, b"hi"), (200, b"hi"), (503, b""), (200, b"hi")]
    assert connections == 2


def test_a_group_costs_its_longest_request():
    short, long = SoundRequest(8, 2.0, 1.0), SoundRequest(50, 2.0, 3.0)
    assert group_s([short, long]) == pytest.approx(50 * STEP_S)
    assert group_s([short] * ROWS) == pytest.approx(8 * STEP_S)
    assert group_s([short] * (ROWS + 1)) == pytest.approx(16 * STEP_S)
    batch = first("mixed", 0, 64)
    cut = groups(batch)
    assert all(sum(r.rows for r in group) <= ROWS for group in cut)
    assert sorted(r.seed for group in cut for r in group) == list(range(64))
    unsorted = [batch[start : start + ROWS // 2] for start in range(0, 64, ROWS // 2)]
    assert sum(map(group_s, cut)) < sum(map(group_s, unsorted))


def test_the_bare_sampler_has_a_rate():
    rate, cpu_ms = raw("uniform", ROWS, 1.0)
    assert 0 < rate <= 1.1 * ROWS / (8 * STEP_S)  # no faster than the simulated steps allow
    assert cpu_ms > 0
