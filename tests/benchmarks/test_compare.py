"""The load generator and the statistics of the comparison, against a stand-in for a server."""

from __future__ import annotations

import asyncio
import itertools
import math

import pytest

from benchmarks.serving import raw
from benchmarks.serving.accelerator import ROWS, STEP_S, Request, call_s, group_s, groups
from benchmarks.serving.arrivals import poisson, requests
from benchmarks.serving.client import Answer, Http, ask_at, figures, saturate
from benchmarks.serving.report import SATURATED, Results, table


def first(load, repetition, count):
    return list(itertools.islice(requests(load, repetition), count))


def test_every_system_is_asked_for_the_same_at_the_same_times():
    assert first("mixed", 0, 50) == first("mixed", 0, 50) != first("mixed", 1, 50)
    assert poisson(20, 30, 0) == poisson(20, 30, 0) != poisson(20, 30, 1)
    slow, fast = poisson(10, 30, 0), poisson(20, 30, 0)
    assert fast[: len(slow)] == pytest.approx([at / 2 for at in slow])
    assert len(poisson(100, 100, 0)) == pytest.approx(10_000, abs=400)
    with pytest.raises(ValueError, match="uniform, mixed"):
        next(requests("other", 0))


def test_the_mixed_load_is_what_it_says():
    asked = first("mixed", 0, 2000)
    assert {r.num_inference_steps for r in asked} == set(range(8, 51))
    assert {r.duration_s for r in asked} == {2.0, 3.0, 4.0, 5.0}
    assert sum(r.rows for r in asked) == pytest.approx(1.5 * len(asked), rel=0.05)


def test_latency_counts_from_the_intended_time_and_what_is_unanswered_counts():
    answers = [Answer(n / 10, sent=n / 10 + 0.5, done=n / 10 + 1.0) for n in range(19)] + [Answer(1.9)]
    found = figures(answers, 0.0, 2.0)
    assert (found.p50_s, found.p95_s, found.unanswered) == (pytest.approx(1.0), math.inf, 1)
    assert found.throughput == pytest.approx(
        (11 + 4.4) / 2
    )  # eleven whole ones, eight by a part of their second
    assert found.late_s == pytest.approx(0.5)


def test_a_server_that_holds_up_its_clients_is_charged_for_it():
    async def answer_one_by_one(_):
        async with turn:
            await asyncio.sleep(0.02)
        return True

    times = [n * 0.005 for n in range(40)]
    turn = asyncio.Lock()
    found = ask_at(answer_one_by_one, requests("uniform", 0), times, warm_up_s=0.1, seconds=0.1, drain_s=5)
    assert found.requests == 20
    assert found.unanswered == 0
    assert found.p50_s > 0.3  # the thirtieth waits for the thirty before it


def test_a_closed_loop_keeps_so_many_requests_under_way():
    under_way, most = 0, 0

    async def answer(_):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return True

    found = saturate(answer, requests("uniform", 0), under_way=7, warm_up_s=0.05, seconds=0.2, drain_s=5)
    assert most == 7
    assert found.unanswered == 0
    assert 7 < found.throughput <= 700


def test_the_client_reads_answers_of_either_framing_and_keeps_its_connections():
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
        http = Http(server.sockets[0].getsockname()[1], "/predict", {})
        answers = [await http.post(Request(8, 1.0, 1.0)) for _ in range(4)]
        await http.close()
        server.close()
        await server.wait_closed()
        return answers, http.refused

    assert asyncio.run(talk()) == ([True, True, False, True], {503: 1})
    assert connections == 2


def test_a_group_costs_its_longest_request_and_sorting_makes_groups_alike():
    short, long = Request(8, 2.0, 1.0), Request(50, 2.0, 3.0)
    assert group_s([short, long]) == pytest.approx(50 * STEP_S)
    assert group_s([short] * ROWS) == pytest.approx(8 * STEP_S)
    assert group_s([short] * (ROWS + 1)) == pytest.approx(16 * STEP_S)
    batch = first("mixed", 0, 64)
    cut = groups(batch, sort=True)
    assert all(sum(r.rows for r in group) <= ROWS for group in cut)
    assert sorted(r.seed for group in cut for r in group) == list(range(64))
    assert sum(map(group_s, cut)) < sum(map(group_s, groups(batch, sort=False)))


def test_the_ideal_server_shares_steps_and_is_never_idle_with_work_at_hand():
    alone = raw.ideal(iter([Request(8, 1.0, 1.0)]), [1.0])
    assert alone[0].latency_s == pytest.approx(8 * STEP_S)
    full = raw.ideal(requests("uniform", 0), [0.0] * (2 * ROWS))
    assert full[-1].done == pytest.approx(16 * STEP_S)
    mixed = raw.ideal(requests("mixed", 0), [0.0] * 500)
    steps = sum(r.rows * r.num_inference_steps for r in first("mixed", 0, 500))
    assert mixed == sorted(mixed, key=lambda answer: answer.intended)
    assert max(a.done for a in mixed) == pytest.approx(steps / ROWS * call_s(ROWS), rel=0.1)


def test_results_are_kept_replaced_and_related_to_ours(tmp_path):
    results = Results(tmp_path / "results.json")
    with pytest.raises(LookupError, match="raw"):
        results.raw("mixed")
    for system, rate, p95 in (
        ("raw", 10.0, 1.0),
        ("litserve", 5.0, math.inf),
        ("ours", 3.0, 1.0),
        ("ours", 8.0, 2.0),
    ):
        results.add(system, "mixed", SATURATED, 0, {"throughput": rate, "p95_s": p95}, seconds=1)
    again = Results(tmp_path / "results.json")
    assert again.windows == results.windows
    assert again.raw("mixed") == 10.0
    assert again.values("throughput", "ours", "mixed", SATURATED) == [8.0]
    assert again.values("p95_s", "litserve", "mixed", SATURATED) == [math.inf]
    litserve = next(line for line in table(again).splitlines() if "LitServe" in line)
    assert "| 5.0 | 0.50 |" in litserve
    assert "overloaded" in litserve
    assert "1.60 x" in litserve
