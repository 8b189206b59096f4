"""Run one scenario: `python -m benchmarks.load SCENARIO [options]`; `--help` lists its options."""

from __future__ import annotations

import logging

import typer

from clipsynth.services.processes import let_threads_sleep

# must come before torch is imported
let_threads_sleep()

from benchmarks.load import api, race, redis_rate, worker  # noqa: E402

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("redis")(redis_rate.measure_redis)
    for scenario in (
        api.idle,
        worker.throughput,
        api.overload,
        api.enqueue,
        api.sse,
        worker.replay,
        race.race,
    ):
        app.command()(scenario)
    app()
