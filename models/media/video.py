"""Read videos: the sound and a few frames, on one clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from models.audio.level import SILENT_PEAK

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi"}
MIN_DURATION_S = 0.5
SIDE = 512  # larger images are reduced at once, as uploads are


class VideoError(ValueError):
    """A video that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class AudioTrack:
    """A stretch of mono `samples` (T,) float32 in [-1, 1] that starts at `time_s`."""

    time_s: float
    samples: np.ndarray


@dataclass(frozen=True)
class Frame:
    """An image shown at `time_s`."""

    time_s: float
    image: Image.Image


@dataclass(frozen=True)
class RawClip:
    """`waveform` (T,) float32 as decoded, and `frames` in order of time.

    Second 0 is the first sample of the waveform.
    """

    waveform: np.ndarray
    frames: list[Frame]


def decode(path: Path, *, sample_rate: int, frames_per_s: float = 1.0) -> Iterator[AudioTrack | Frame]:
    """Yield a video's sound (mono, `sample_rate`) and frames in file order, with times in seconds by PTS.

    Raises:
        VideoError: not a video, or a video without image or sound.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("no image")
            if not container.streams.audio:
                raise VideoError("no sound")
            resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
            next_frame_s, sound_s = float("-inf"), 0.0
            for item in container.decode(video=0, audio=0):
                if isinstance(item, av.AudioFrame):
                    for part in resampler.resample(item):
                        sound_s = part.time if part.time is not None else sound_s
                        yield AudioTrack(sound_s, part.to_ndarray()[0])
                elif item.time is None or item.time >= next_frame_s:
                    shown_s = 0.0 if item.time is None else item.time
                    image = item.to_image()
                    image.thumbnail((SIDE, SIDE))
                    yield Frame(shown_s, image)
                    next_frame_s = max(next_frame_s, shown_s - 1e-3) + 1 / frames_per_s
            for part in resampler.resample(None):
                yield AudioTrack(part.time if part.time is not None else sound_s, part.to_ndarray()[0])
    except av.FFmpegError as error:
        raise VideoError(f"cannot be decoded: {error.strerror}") from error


def read_video(path: Path, *, sample_rate: int, frames_per_s: float = 1.0) -> RawClip:
    """Read a whole video into memory; for short ones.

    Raises:
        VideoError: not a video, no image, no sound, silent, or shorter than half a second.
    """
    sounds: list[AudioTrack] = []
    frames: list[Frame] = []
    for item in decode(path, sample_rate=sample_rate, frames_per_s=frames_per_s):
        if isinstance(item, AudioTrack):
            sounds.append(item)
        else:
            frames.append(item)
    if not frames:
        raise VideoError("no image")
    waveform = np.concatenate([s.samples for s in sounds]) if sounds else np.zeros(0, np.float32)
    if len(waveform) < MIN_DURATION_S * sample_rate:
        raise VideoError(f"shorter than {MIN_DURATION_S:g} s")
    if is_silent(waveform):
        raise VideoError("silent")
    start_s = sounds[0].time_s
    return RawClip(waveform, [Frame(f.time_s - start_s, f.image) for f in frames])


def is_silent(waveform: np.ndarray) -> bool:
    """Return whether (T,), without its mean, stays below -80 dB of full scale."""
    return bool(np.abs(waveform - waveform.mean()).max() < SILENT_PEAK)
