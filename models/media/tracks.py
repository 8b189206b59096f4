"""Choose the streams of a video, and put its sound where its timestamps say."""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition

TOLERANCE_S = 0.04  # timestamps jitter; more is a gap or an overlap
CANCELLED = 0.1  # power of the mix against the louder channel; less and the channels cancel
NOT_THE_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
NOT_THE_SOUND = Disposition.comment | Disposition.visual_impaired | Disposition.karaoke


def video_stream(container: InputContainer) -> av.VideoStream | None:
    """Return the default moving stream, or the largest one; None if there are only covers."""
    moving = [s for s in container.streams.video if not s.disposition & NOT_THE_VIDEO and s.codec_context]
    return max(
        moving,
        key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height, -s.index),
        default=None,
    )


def audio_streams(container: InputContainer) -> list[av.AudioStream]:
    """Return the sound tracks that can be decoded: the default first, comments last."""
    tracks = [s for s in container.streams.audio if s.codec_context]
    return sorted(
        tracks,
        key=lambda s: (bool(s.disposition & NOT_THE_SOUND), not s.disposition & Disposition.default, s.index),
    )


def downmix(samples: np.ndarray) -> np.ndarray:
    """Return (T,) of (2, T): the mean of both channels, or the louder one where they cancel."""
    if samples.ndim == 1:
        return samples
    mono = samples.mean(0, dtype=np.float32)
    power = [channel.var() for channel in samples]
    return mono if mono.var() >= CANCELLED * max(power) else samples[int(np.argmax(power))]


class SoundPlacer:
    """Resample a stream's frames to stereo without gaps: silence fills one, an overlap is cut."""

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._resampler: av.AudioResampler | None = None
        self._form: tuple[str, str, int] | None = None
        self._origin_s: float | None = None
        # Samples given out since `_origin_s`, and samples still to cut.
        self._written, self._cut = 0, 0
        # Where the next frame should start.
        self._expected_s = 0.0

    def place(self, frame: av.AudioFrame) -> Iterator[tuple[float, np.ndarray]]:
        """Yield (start in seconds, samples (2, T)) of what a frame completes."""
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        time_s = self._expected_s if frame.time is None else frame.time
        if self._origin_s is None:
            self._origin_s = self._expected_s = time_s
        jump = abs(time_s - self._expected_s) > TOLERANCE_S
        if form != self._form or jump:
            yield from self.flush()
            layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
            self._resampler, self._form = av.AudioResampler("fltp", layout, self._rate), form
        if jump:
            missing = round((time_s - self._origin_s) * self._rate) - self._written
            if missing > 0:
                yield from self._silence(missing)
            self._cut = max(0, -missing)
            self._expected_s = time_s
        self._expected_s += frame.samples / frame.sample_rate
        assert self._resampler is not None
        for part in self._resampler.resample(frame):
            yield from self._give(part.to_ndarray())

    def flush(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the samples that the resampler still holds."""
        if self._resampler is not None:
            for part in self._resampler.resample(None):
                yield from self._give(part.to_ndarray())
        self._resampler = None

    def _silence(self, length: int) -> Iterator[tuple[float, np.ndarray]]:
        while length > 0:
            step = min(length, 10 * self._rate)
            yield from self._give(np.zeros((2, step), np.float32))
            length -= step

    def _give(self, samples: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        cut = min(self._cut, samples.shape[1])
        self._cut -= cut
        if samples.shape[1] > cut:
            start_s = (self._origin_s or 0.0) + self._written / self._rate
            self._written += samples.shape[1] - cut
            yield start_s, np.broadcast_to(samples[:, cut:], (2, samples.shape[1] - cut))
