"""How often a clip is drawn in training, by how well its sound and picture agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def sampling_weights(
    scores: Sequence[float | None], *, centre: float = 0.3, temperature: float = 0.1
) -> torch.Tensor:
    """Return probabilities (N,) proportional to sigmoid((s - centre) / temperature), fp64; they sum to 1.

    Args:
        scores: quantiles among the training clips, 0..1; a clip without one counts as the middle, 0.5.
        centre: the quantile at which a clip is drawn half as often as a perfect one.
        temperature: how wide the passage around it is; small is a cut, large is no difference.

    Raises:
        ValueError: no scores, or a temperature that is not above 0.
    """
    if not scores or temperature <= 0:
        raise ValueError(f"need scores and a temperature above 0, got {len(scores)} and {temperature}")
    known = torch.tensor([0.5 if s is None else s for s in scores], dtype=torch.float64)
    weights = torch.sigmoid((known - centre) / temperature)
    return weights / weights.sum()
