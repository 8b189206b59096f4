"""From requested attributes in 0..1 to conditioning scalars and a level.

A value is a quantile among the training clips *near the prompt*: a "high-pitched" dog is high-pitched among
dogs. A bundle trained on varied copies of its clips can go beyond them, by its reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.audio.attributes import CONDITIONS, Scales
from models.audio.level import MAX_PEAK
from models.networks.condition_encoder import KINDS, Condition, ConditionEncoder
from models.retrieval.clip_index import Index

NEIGHBOURS = 32  # training clips near the prompt
# So many of them must have an attribute; else the quantile is taken among all training clips.
FEWEST = 4
CORRESPONDENCE = "agreement"  # the name on disk
# Requested correspondence of sound and image, for bundles trained with this scalar.
REQUESTED_CORRESPONDENCE = 1.0


def check(asked: Mapping[str, float], taken: Sequence[str]) -> None:
    """Raise ValueError for an attribute that is not in `taken`, or not in 0..1."""
    for name, quantile in asked.items():
        if name not in taken:
            raise ValueError(f"this bundle takes no attribute {name!r}, only {', '.join(taken) or 'none'}")
        if not 0 <= quantile <= 1:
            raise ValueError(f"attribute {name!r} must be 0 to 1, got {quantile}")


def resolve(
    asked: Mapping[str, float],
    conditions: Sequence[Condition],
    encoder: ConditionEncoder,
    scales: Scales,
    index: Index | None,
    reach: float = 0.0,
) -> dict[str, float]:
    """Return the conditioning scalars in 0..1 for the requested attributes.

    Each request is a quantile among the clips nearest to `conditions`.

    An attribute of 0 lies `reach` below the lowest of these clips and 1 lies `reach` above the highest, as a
    share of all training clips. Without an index, or if fewer than `FEWEST` of the `NEIGHBOURS` nearest clips
    have the attribute, the quantile is taken among all training clips.
    """

    scalars = {CORRESPONDENCE: REQUESTED_CORRESPONDENCE} if CORRESPONDENCE in encoder.config.scalars else {}
    wanted = {name: quantile for name, quantile in asked.items() if name in CONDITIONS}
    if not wanted:
        return scalars
    near = [] if index is None else index.attributes(_nearest(conditions, encoder, index))
    for name, quantile in wanted.items():
        values = [clip[name] for clip in near if name in clip]
        if len(values) < FEWEST:
            scalars[name] = quantile
            continue
        place = scales.quantile(name, float(np.quantile(values, quantile)))

        scalars[name] = min(max(place + reach * (2 * quantile - 1), 0.0), 1.0)

    return scalars


def _nearest(conditions: Sequence[Condition], encoder: ConditionEncoder, index: Index) -> list[int]:
    """Return the numbers of the training clips nearest to the weighted mean of a set's centred embeddings."""
    mean = encoder.means[KINDS.index("image")]
    numbers: list[int] = index.nearest(encoder.total(conditions)[None], NEIGHBOURS, mean=mean)[0].tolist()
    return numbers


def at_loudness(waveform: np.ndarray, loudness_dbfs: float | None) -> np.ndarray:
    """Return a waveform (T,) at an RMS in dB of full scale, lower where its peak would exceed `MAX_PEAK`.

    None and silence change nothing.
    """
    peak = float(np.abs(waveform).max(initial=0.0))
    if loudness_dbfs is None or not 0 < peak < np.inf:
        return waveform
    rms = float(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))
    return waveform * np.float32(min(10 ** (loudness_dbfs / 20) / rms, MAX_PEAK / peak))
