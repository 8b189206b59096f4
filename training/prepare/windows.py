"""Cut videos into windows of equal length that are not silent, each with its frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from models.media.video import MIN_DURATION_S, AudioTrack, Frame, VideoError

SILENCE_RMS = 10 ** (-60 / 20)  # windows below -60 dB of full scale are silent


@dataclass(frozen=True)
class Window:
    """`waveform` (T,) float32 as decoded, its start in the video, and frames timed from its start."""

    start_s: float
    waveform: np.ndarray
    frames: list[Frame]


def cut_windows(items: Iterable[AudioTrack | Frame], *, sample_rate: int, clip_s: float) -> Iterator[Window]:
    """Yield windows of `clip_s` seconds that are not silent; the last one has at least half a second.

    Holds about one window in memory if sound and images are interleaved, otherwise the sound since the last
    image. A window without a new frame gets the last one shown.

    Raises:
        VideoError: no frame, less than half a second of sound, or only silence.
    """
    size = round(clip_s * sample_rate)
    parts: list[np.ndarray] = []  # the sound from sample `start` on
    frames: list[Frame] = []
    origin_s: float | None = None
    start, heard, shown_s, made = 0, 0, float("-inf"), 0

    def window(end: int) -> Window | None:
        nonlocal parts, frames, start, made
        held = parts[0] if len(parts) == 1 else np.concatenate(parts)
        waveform, parts = held[: end - start], [held[end - start :]]
        zero_s, end_s = start / sample_rate + (origin_s or 0.0), end / sample_rate + (origin_s or 0.0)
        before = [f for f in frames if f.time_s <= zero_s][-1:]
        inside = [f for f in frames if zero_s < f.time_s < end_s]
        frames = [f for f in frames if f.time_s < end_s][-1:] + [f for f in frames if f.time_s >= end_s]
        own = before + inside or frames[:1]
        begin, start = start, end
        centred = waveform - waveform.mean()
        if not own or float(np.sqrt(np.mean(centred**2))) < SILENCE_RMS:
            return None
        made += 1
        return Window(begin / sample_rate, waveform, [Frame(f.time_s - zero_s, f.image) for f in own])

    for item in items:
        if isinstance(item, AudioTrack):
            origin_s = item.time_s if origin_s is None else origin_s
            parts.append(item.samples)
            heard += len(item.samples)
        else:
            frames.append(item)
            shown_s = item.time_s
        while (
            origin_s is not None
            and heard - start >= size
            and shown_s - origin_s >= (start + size) / sample_rate
        ):
            if (clip := window(start + size)) is not None:
                yield clip
    while heard - start >= max(1, round(MIN_DURATION_S * sample_rate)):
        if (clip := window(min(start + size, heard))) is not None:
            yield clip
    if not frames:
        raise VideoError("no image")
    if heard < MIN_DURATION_S * sample_rate:
        raise VideoError(f"shorter than {MIN_DURATION_S:g} s")
    if not made:
        raise VideoError("silent")
