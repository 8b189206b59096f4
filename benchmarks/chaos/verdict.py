"""What became of the jobs of a run."""

from __future__ import annotations

import collections
from collections.abc import Collection, Mapping

from redis import Redis

from benchmarks.load.workload import MODEL
from clipsynth.errors import NotFound
from clipsynth.jobs.queue import get_queue
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import TERMINAL, Generation, Status
from clipsynth.storage import Storage, audio_key


def find(state: JobStore, generation_id: str) -> Generation | None:
    """Return a generation; None where its record is lost."""
    try:
        return state.get(generation_id)
    except NotFound:
        return None


def has_all_outputs(storage: Storage, generation: Generation) -> bool:
    """Return whether exactly the outputs of a generation's status are listed and stored."""
    numbers = list(range(generation.input.num_outputs if generation.status is Status.SUCCEEDED else 0))
    try:
        for n in numbers:
            storage.get(audio_key(generation.folder, n, "wav"))
    except NotFound:
        return False
    return [output.index for output in generation.outputs] == numbers


def verdict(
    redis: Redis,
    state: JobStore,
    storage: Storage,
    expected: Mapping[str, Status],
    *,
    excuses: Collection[str] = (),
) -> dict[str, int]:
    """Count the jobs by status and by fault; `faults` must be 0.

    Args:
        expected: status in which each job must have ended, by id.
        excuses: error codes with which a job may have failed instead.
    """
    found = {i: generation for i in expected if (generation := find(state, i)) is not None}
    others = {
        i: g
        for i, g in found.items()
        if g.status != expected[i] and not (g.status is Status.FAILED and g.error and g.error.code in excuses)
    }
    for i, generation in others.items():
        print(f"{i}: {generation.status}, error {generation.error}")
    stuck = sum(g.status not in TERMINAL for g in found.values())
    statuses = collections.Counter(str(g.status) for g in found.values())
    faults = {
        "lost": len(expected) - len(found),
        "stuck": stuck,
        "ended twice": max(0, sum(state.ended().values()) - len(expected)),
        "ended otherwise than expected": len(others),
        "incomplete results": sum(not has_all_outputs(storage, g) for g in found.values()),
        "left on the queue": get_queue(MODEL, redis).count,
        "ended and still noted as unfinished": len(state.unfinished()) - stuck,
    }
    return {**statuses, **faults, "faults": sum(map(abs, faults.values()))}
