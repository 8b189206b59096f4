"""What an output's resource says of the training clips: which are nearest to it, and whether it counts as a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from clipsynth.schemas.generation import NearClip, Nearness, TrainingClip
from models.audio.level import level
from models.retrieval.clip_index import Index
from models.retrieval.thumbnails import Thumbnails

CLIPS = 3  # named with an output


def described(clip: dict[str, Any]) -> TrainingClip:
    """Return what the API says of a clip of an index."""
    return TrainingClip(**{name: clip[name] for name in TrainingClip.model_fields})


def nearness(
    index: Index,
    images: Thumbnails,
    log_mel: Callable[[np.ndarray], np.ndarray],
    waveform: np.ndarray,
    sample_rate: int,
) -> Nearness:
    """Compare a waveform (T,) with the training clips by its log-mel."""
    found = images.nearest(log_mel(level(waveform)[0]), CLIPS)
    novelty = found[0][1]
    copy_distance = images.copy_distance(len(waveform) / sample_rate)
    return Nearness(
        novelty=round(novelty, 4),
        is_copy=None if copy_distance is None else novelty < copy_distance,
        nearest=[
            NearClip(**described(index.clips[n]).model_dump(), distance=round(distance, 4))
            for n, distance in found
        ],
    )
