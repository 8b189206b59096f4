"""Videos to what the project uses of them: the sound, and a few frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi"}
MIN_DURATION_S = 0.5


class VideoError(ValueError):
    """A video that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class RawClip:
    """`waveform` (T,) float32 in [-1, 1] as decoded, and `frames`, evenly spaced in order of time."""

    waveform: np.ndarray
    frames: list[Image.Image]


def read_video(path: Path, *, sample_rate: int, frames_per_s: float = 1.0) -> RawClip:
    """Decode the sound (mono, `sample_rate`) and frames of a video, both from one open file.

    Raises:
        VideoError: not a video, no picture, no sound, silent, or shorter than half a second.
    """
    waveforms: list[np.ndarray] = []
    frames: list[Image.Image] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("no picture")
            if not container.streams.audio:
                raise VideoError("no sound")
            resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
            next_s = 0.0
            for frame in container.decode(video=0, audio=0):
                if isinstance(frame, av.AudioFrame):
                    waveforms += [part.to_ndarray()[0] for part in resampler.resample(frame)]
                elif frame.time is None or frame.time >= next_s:
                    frames.append(frame.to_image())
                    next_s += 1 / frames_per_s
            waveforms += [part.to_ndarray()[0] for part in resampler.resample(None)]
    except av.FFmpegError as error:
        raise VideoError(f"cannot be decoded: {error}") from error
    if not frames:
        raise VideoError("no picture")
    waveform = np.concatenate(waveforms) if waveforms else np.zeros(0, np.float32)
    if len(waveform) < MIN_DURATION_S * sample_rate:
        raise VideoError(f"shorter than {MIN_DURATION_S:g} s")
    if np.abs(waveform - waveform.mean()).max() < 1e-4:
        raise VideoError("silent")
    return RawClip(waveform, frames)
