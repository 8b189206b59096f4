"""How does the service compare with other servers? The same simulated accelerator, requests and arrival times for each.

    python -m benchmarks.serving.compare                                        # everything: more than an hour
    python -m benchmarks.serving.compare --systems ours --loads mixed --arrivals saturated 0.75 --repetitions 1
    python -m benchmarks.serving.compare --tune --systems litserve --loads mixed --seconds 8
    python -m benchmarks.serving.compare --demo                                 # the demo bundle on the CPU, saturated

Raw is the sampler in a loop (saturated) or the same by a clock that is only counted (Poisson); RQ is its SimpleWorker in the
place of ours. All but raw are asked over HTTP by one process, one new server for each window. An arrival is `saturated` or the share of the raw throughput
that a Poisson process asks for. What was measured is kept in `--out` and replaced when it is measured again; from it come the table and the plot.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.serving import arrivals, report
from benchmarks.serving.accelerator import Request
from benchmarks.serving.client import Figures, ask_at, figures, saturate
from benchmarks.serving.contenders import Options, contender
from benchmarks.serving.report import SATURATED, Results
from benchmarks.serving.venvs import cache_dir
from clipsynth.services.processes import let_threads_sleep
from clipsynth.settings import Settings
from models.bundle import Manifest

SYSTEMS = ("raw", "rq", "litserve", "bentoml", "ours")
ARRIVALS = (SATURATED, "0.25", "0.5", "0.75", "0.9")
UNDER_WAY = 128  # requests, when saturated: four full batches
FEW_UNDER_WAY = 16  # where a batch is small or there is none: who waits longer than 60 s is told to come back
WARM_UP_S = 4.0
DRAIN_S = 20.0
TUNED: dict[tuple[str, str], Options] = {
    ("litserve", "uniform"): {"batch": 32, "wait_s": 0.0, "sort": True},
    ("litserve", "mixed"): {"batch": 128, "wait_s": 0.1, "sort": True},
    ("litserve", "demo"): {"batch": 4, "wait_s": 0.0},
    ("bentoml", "uniform"): {"batch": 32, "max_latency_ms": 60_000, "sort": True},
    ("bentoml", "mixed"): {"batch": 128, "max_latency_ms": 60_000, "sort": True},
}
GRID: dict[str, list[Options]] = {
    "litserve": [
        {"batch": 32, "wait_s": 0.0, "sort": False},
        {"batch": 32, "wait_s": 0.0, "sort": True},
        {"batch": 64, "wait_s": 0.0, "sort": True},
        {"batch": 128, "wait_s": 0.0, "sort": True},
        {"batch": 128, "wait_s": 0.1, "sort": True},
    ],
    "bentoml": [
        {"batch": 32, "max_latency_ms": 60_000, "sort": True},
        {"batch": 128, "max_latency_ms": 60_000, "sort": True},
        {"batch": 128, "max_latency_ms": 10_000, "sort": True},
    ],
}


def wanted(load: str, repetition: int, bundle: Path) -> Iterator[Request]:
    """Yield the requests of a load; those of `demo` are the bundle's defaults."""
    if load != "demo":
        return arrivals.requests(load, repetition)
    m = Manifest.read(bundle)
    return (
        Request(m.num_inference_steps, m.duration_s, m.guidance_scale, seed, "a dog barking")
        for seed in itertools.count()
    )


class Comparison:
    """Measures, and keeps what was measured."""

    def __init__(self, results: Results, *, seconds: float, bundle: Path, log: Path) -> None:
        self.results, self.seconds, self.bundle, self.log = results, seconds, bundle, log

    def measure(
        self, system: str, load: str, arrival: str, repetition: int, options: Options
    ) -> dict[str, Any]:
        """Return the figures of one window."""
        requests = wanted(load, repetition, self.bundle)
        if system == "raw":
            return self._raw(load, arrival, repetition, requests)
        if system == "rq" and arrival != SATURATED:
            return {}  # one job at a time is far from the lightest of these loads
        options = {"bundle": str(self.bundle) if load == "demo" else None, **options}
        with contender(system, options, next(wanted(load, repetition, self.bundle)), self.log) as server:
            http, cpu = server.http(), server.cpu_s()
            seen = self._ask(http.post, system, load, arrival, repetition, requests)
            spent = sum(s - cpu.get(pid, 0.0) for pid, s in server.cpu_s().items())
        found = dataclasses.asdict(seen)
        if http.refused:
            found["refused"] = http.refused
        return found | {"cpu_ms": 1e3 * spent / max(1, seen.answered)}

    def _ask(
        self, send: Any, system: str, load: str, arrival: str, repetition: int, requests: Iterator[Request]
    ) -> Figures:
        if arrival == SATURATED:
            under_way = FEW_UNDER_WAY if load == "demo" or system == "rq" else UNDER_WAY
            return saturate(
                send,
                requests,
                under_way=under_way,
                warm_up_s=WARM_UP_S,
                seconds=self.seconds,
                drain_s=DRAIN_S,
            )
        times = self._times(load, arrival, repetition)
        return ask_at(send, requests, times, warm_up_s=WARM_UP_S, seconds=self.seconds, drain_s=DRAIN_S)

    def _times(self, load: str, arrival: str, repetition: int) -> list[float]:
        per_s = float(arrival) * self.results.raw(load)
        return arrivals.poisson(per_s, WARM_UP_S + self.seconds, repetition)

    def _raw(self, load: str, arrival: str, repetition: int, requests: Iterator[Request]) -> dict[str, Any]:
        from benchmarks.serving import bundle, raw

        if load == "demo":
            return {"throughput": max(bundle.raw(self.bundle, round(self.seconds)).values())}
        if arrival == SATURATED:
            return {"throughput": raw.throughput(requests, self.seconds)}
        answers = raw.ideal(requests, self._times(load, arrival, repetition))
        return dataclasses.asdict(figures(answers, WARM_UP_S, WARM_UP_S + self.seconds))


def tune(comparison: Comparison, system: str, load: str) -> None:
    """Try all settings of the grid in short windows, saturated and at three quarters of the raw throughput."""
    for options in GRID[system]:
        saturated, poisson = (comparison.measure(system, load, a, 0, options) for a in (SATURATED, "0.75"))
        print(
            f"{system} {load} {options}: {saturated['throughput']:.1f}/s saturated;"
            f" p50 {poisson['p50_s']:.2f} s, p95 {poisson['p95_s']:.2f} s at 0.75",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the results, the table and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of a window")
    parser.add_argument(
        "--repetitions", type=int, nargs="*", default=[0, 1], help="their numbers: each has its own draws"
    )
    parser.add_argument("--systems", nargs="*", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--loads", nargs="*", default=arrivals.LOADS, choices=arrivals.LOADS)
    parser.add_argument("--arrivals", nargs="*", default=ARRIVALS)
    parser.add_argument("--demo", action="store_true", help="the demo bundle on the CPU, saturated")
    parser.add_argument("--tune", action="store_true", help="try settings of the other servers instead")
    parser.add_argument(
        "--shared", action="store_true", help="note that other work runs beside it: the table marks it"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("comparison.json"))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers end with it
    logging.disable(logging.WARNING)
    let_threads_sleep()  # in all that are compared, as our worker does
    results = Results(options.out)
    log = cache_dir() / "servers.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(results, seconds=options.seconds, bundle=Settings().model, log=log)
    if options.demo:
        options.loads, options.arrivals = ["demo"], [SATURATED]
        options.systems = [system for system in options.systems if system != "bentoml"]  # not tuned for it
    if options.tune:
        for system, load in itertools.product(options.systems, options.loads):
            tune(comparison, system, load)
        return
    for repetition, load, arrival, system in itertools.product(
        options.repetitions, options.loads, options.arrivals, options.systems
    ):
        settings = TUNED.get((system, load), {})
        found = comparison.measure(system, load, arrival, repetition, settings)
        if found:
            results.add(
                system,
                load,
                arrival,
                repetition,
                found,
                seconds=options.seconds,
                settings=settings,
                shared=options.shared,
            )
            print(
                system,
                load,
                arrival,
                repetition,
                {k: round(v, 3) for k, v in found.items() if k != "refused"},
                file=sys.stderr,
                flush=True,
            )
    print(report.table(results))
    report.plot(results, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
