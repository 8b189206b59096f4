"""What a request asks of a sound's character, in 0..1, and how it gets there: as scalars that the condition encoder is told, and as a level.

What is asked for is a place among the training clips *near the query*: a "high-pitched" dog is one among dogs, for there is none among flutes. A bundle that has
learned more than its clips are, for it was told of variants of them, has a reach beyond those near the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.audio.attributes import CONDITIONS, Scales
from models.audio.level import MAX_PEAK
from models.networks.condition_encoder import KINDS, Condition, ConditionEncoder
from models.retrieval.clip_index import Index

NEIGHBOURS = 32  # training clips that a query is compared with
FEWEST = 4  # of them that must have an attribute; else it is asked for among all training clips
AGREEMENT = "agreement"
ASKED_AGREEMENT = 1.0  # of sound and image, where the bundle was told it in training: a sound that fits is what everybody wants


def check(asked: Mapping[str, float], taken: Sequence[str]) -> None:
    """Raise ValueError for an attribute that is not among `taken`, or not in 0..1."""
    for name, quantile in asked.items():
        if name not in taken:
            raise ValueError(f"this bundle takes no attribute {name!r}, only {', '.join(taken) or 'none'}")
        if not 0 <= quantile <= 1:
            raise ValueError(f"attribute {name!r} must be 0 to 1, got {quantile}")


def tell(
    asked: Mapping[str, float],
    conditions: Sequence[Condition],
    encoder: ConditionEncoder,
    scales: Scales,
    index: Index | None,
    reach: float = 0.0,
) -> dict[str, float]:
    """Return the scalars in 0..1 that the encoder is told for attributes `asked`, each a quantile among the clips nearest to `conditions`.

    Of the lowest of these clips and the highest, an attribute of 0 lies `reach` below and one of 1 `reach` above, as a share of all training clips. Where there is no index, or fewer than `FEWEST` of its `NEIGHBOURS` nearest clips have an attribute, its quantile is one of all training clips.
    """
    told = {AGREEMENT: ASKED_AGREEMENT} if AGREEMENT in encoder.config.scalars else {}
    wanted = {name: quantile for name, quantile in asked.items() if name in CONDITIONS}
    if not wanted:
        return told
    near = [] if index is None else index.attributes(_nearest(conditions, encoder, index))
    for name, quantile in wanted.items():
        values = [clip[name] for clip in near if name in clip]
        if len(values) < FEWEST:
            told[name] = quantile
            continue
        place = scales.quantile(name, float(np.quantile(values, quantile)))
        told[name] = min(max(place + reach * (2 * quantile - 1), 0.0), 1.0)
    return told


def _nearest(conditions: Sequence[Condition], encoder: ConditionEncoder, index: Index) -> list[int]:
    """Return the numbers of the training clips nearest to a set: to the mean of its centred embeddings by weight."""
    mean = encoder.means[KINDS.index("image")]
    numbers: list[int] = index.nearest(encoder.total(conditions)[None], NEIGHBOURS, mean=mean)[0].tolist()
    return numbers


def at_loudness(waveform: np.ndarray, loudness_dbfs: float | None) -> np.ndarray:
    """Return a waveform (T,) at an RMS in dB of full scale, or lower where it would peak above `MAX_PEAK`; as it is for None or silence."""
    peak = float(np.abs(waveform).max(initial=0.0))
    if loudness_dbfs is None or not 0 < peak < np.inf:
        return waveform
    rms = float(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))
    return waveform * np.float32(min(10 ** (loudness_dbfs / 20) / rms, MAX_PEAK / peak))
