"""What a simulated accelerator costs, the same for every server that is compared; loads nothing, so that a server needs no torch for it.

One call of the network on up to `ROWS` rows takes `STEP_S`, on up to twice as many twice that. A request with guidance is two rows, with and without
its condition. A row is a canvas of fixed length, as in a network compiled for one shape: how long the sound is costs nothing, and padding
to the longest neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEP_S = 0.02
ROWS = 32
SAMPLES_PER_S = 100  # of the silence that it makes


@dataclass(frozen=True)
class Request:
    """What a client asks for."""

    num_inference_steps: int
    duration_s: float
    guidance_scale: float
    seed: int = 0
    prompt: str = "rain"

    @property
    def rows(self) -> int:
        """Rows of each of its steps."""
        return 2 if self.guidance_scale > 1 else 1


def call_s(rows: int, step_s: float = STEP_S, at_once: int = ROWS) -> float:
    """Return the seconds of one call of the network on so many rows."""
    return step_s * math.ceil(rows / at_once)


def silence(duration_s: float) -> bytes:
    """Return the sound: float32 zeros."""
    return bytes(4 * round(duration_s * SAMPLES_PER_S))


def group_s(group: Sequence[Request]) -> float:
    """Return the seconds of a group that starts together and is answered together; a row that has had its steps leaves."""
    longest = max(request.num_inference_steps for request in group)
    return sum(
        call_s(sum(request.rows for request in group if request.num_inference_steps > step))
        for step in range(longest)
    )


def groups(batch: Sequence[Request], *, sort: bool) -> list[list[Request]]:
    """Cut a batch into groups of at most `ROWS` rows: as they came, or sorted by their number of steps."""
    ordered = sorted(batch, key=lambda request: request.num_inference_steps) if sort else batch
    found: list[list[Request]] = [[]]
    for request in ordered:
        if found[-1] and sum(r.rows for r in found[-1]) + request.rows > ROWS:
            found.append([])
        found[-1].append(request)
    return found
