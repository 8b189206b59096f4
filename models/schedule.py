"""Times of the sampler's steps.

Equal steps of a share u in [0, 1] are at times t; a shift moves them towards the noise.
"""

from __future__ import annotations


def time_at(share: float, shift: float) -> float:
    """Return t = u / (u + shift (1 - u)) for a share u of the steps.

    A shift above 1 puts more steps near the noise, t = 0, where the shape of a clip is decided (Esser et al.
    2024, eq. 23, with t counted from the data there).
    """
    return share / (share + shift * (1 - share))


def share_at(time: float, shift: float) -> float:
    """Return the share of the steps before a time t."""
    return time_at(time, 1 / shift)
