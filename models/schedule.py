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


def shift_for(part: float, shift: float) -> float:
    """Return the shift for a part of the usual number of steps: 1 + (shift - 1) part^2, at most `shift`.

    With the usual shift, the last of few steps would be most of the way (docs/decisions/model.md).
    """
    return 1 + (shift - 1) * min(1.0, part) ** 2


def share_at(time: float, shift: float) -> float:
    """Return the share of the steps before a time t."""
    return time_at(time, 1 / shift)
