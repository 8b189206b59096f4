"""Where the steps of the sampler lie: equal steps of a share u in [0, 1] of the way, at times t of the flow that a shift moves towards the noise."""

from __future__ import annotations


def time_at(share: float, shift: float) -> float:
    """Return t = u / (u + shift (1 - u)) for a share u of the steps: with a shift above 1 more of them lie near the noise, t = 0, where a clip's shape is decided
    (Esser et al. 2024, eq. 23, with t counted from the data there).
    """
    return share / (share + shift * (1 - share))


def share_at(time: float, shift: float) -> float:
    """Return the share of the steps that lie before a time t."""
    return time_at(time, 1 / shift)
