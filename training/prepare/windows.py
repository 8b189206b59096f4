"""Cut videos into windows of equal length that are not silent, each with its frames."""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# PyAV and Pillow import these at the first video; each video has a process of its own, forked after this.
import av.subtitles.stream  # noqa: F401
import numpy as np
import PIL.ImageFile  # noqa: F401

from models.bundle import file_sha256
from models.media.tracks import downmix
from models.media.video import MIN_DURATION_S, AudioTrack, Damage, Frame, SilentError, VideoError, decode

SILENCE_RMS = 10 ** (-60 / 20)  # windows below -60 dB of full scale are silent
MAX_PEAK = 16.0  # of full scale; louder samples are broken, not loud


@dataclass(frozen=True)
class Window:
    """`waveform` (T,) float32 as decoded, its start in the video, and frames timed from its start."""

    start_s: float
    waveform: np.ndarray
    frames: list[Frame]


@dataclass(frozen=True)
class Opened:
    """The SHA-256 of a video file, in hex."""

    sha256: str


@dataclass(frozen=True)
class PlainWindow:
    """A `Window` that passes between processes: `frames_s` (K,), `images` K times (H, W, 3) uint8."""

    start_s: float
    waveform: np.ndarray
    frames_s: list[float]
    images: list[np.ndarray]


@dataclass(frozen=True)
class Ending:
    """The end of a video: why it cannot be used, or what is left out of it, and what this process took."""

    error: str | None
    notes: list[str]
    cpu_s: float
    peak_bytes: int


def decode_windows(
    path: str, known: Collection[str], sample_rate: int, frames_per_s: float, clip_s: float
) -> Iterator[Opened | PlainWindow | Ending]:
    """Yield the hash of a video file, its windows unless the hash is `known`, and the end."""
    digest = file_sha256(Path(path))
    yield Opened(digest)
    if digest in known:
        return
    notes: list[str] = []
    reason = None
    try:
        for window in read_windows(
            Path(path), sample_rate=sample_rate, frames_per_s=frames_per_s, clip_s=clip_s, notes=notes
        ):
            frames = [np.asarray(frame.image) for frame in window.frames]
            times = [round(frame.time_s, 3) for frame in window.frames]
            yield PlainWindow(window.start_s, window.waveform, times, frames)
    except VideoError as error:
        reason, notes = str(error), []
    yield Ending(
        reason, notes, time.process_time(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )


def read_windows(
    path: Path, *, sample_rate: int, frames_per_s: float, clip_s: float, notes: list[str]
) -> Iterator[Window]:
    """Yield the windows of a video, with its default sound track or the first one that is not silent.

    Raises:
        VideoError: as `decode` and `cut_windows`.
    """
    for track in itertools.count():
        items = decode(path, sample_rate=sample_rate, frames_per_s=frames_per_s, track=track)
        try:
            yield from cut_windows(items, sample_rate=sample_rate, clip_s=clip_s, notes=notes)
            return
        except SilentError:
            notes.clear()


def cut_windows(
    items: Iterable[AudioTrack | Frame | Damage], *, sample_rate: int, clip_s: float, notes: list[str]
) -> Iterator[Window]:
    """Yield windows of `clip_s` seconds that are not silent; the last one has at least half a second.

    Holds about one window in memory if sound and images are interleaved, otherwise the sound since the last
    image. A window without a new frame gets the last one shown.

    Args:
        notes: what is left out is appended, in words, except silence.

    Raises:
        VideoError: no frame, less than half a second of sound, or no usable window.
        SilentError: only silence.
    """
    size = round(clip_s * sample_rate)
    parts: list[np.ndarray] = []  # the sound from sample `start` on
    frames: list[Frame] = []
    origin_s: float | None = None
    start, heard, shown_s, made = 0, 0, float("-inf"), 0
    unusable: list[str] = []

    def window(end: int) -> Window | None:
        nonlocal parts, frames, start, made
        held = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
        samples, parts = held[..., : end - start], [held[..., end - start :]]
        zero_s, end_s = start / sample_rate + (origin_s or 0.0), end / sample_rate + (origin_s or 0.0)
        before = [f for f in frames if f.time_s <= zero_s][-1:]
        inside = [f for f in frames if zero_s < f.time_s < end_s]
        frames = [f for f in frames if f.time_s < end_s][-1:] + [f for f in frames if f.time_s >= end_s]
        own = before + inside or frames[:1]
        begin, start = start, end
        if (reason := _absurd(samples)) is not None:
            unusable.append(f"{reason} from {begin / sample_rate:g} s on")
            return None
        waveform = downmix(samples)
        if not own or float(np.sqrt(np.mean((waveform - waveform.mean()) ** 2))) < SILENCE_RMS:
            return None
        made += 1
        return Window(begin / sample_rate, waveform, [Frame(f.time_s - zero_s, f.image) for f in own])

    for item in items:
        if isinstance(item, Damage):
            notes.append(item.reason)
        elif isinstance(item, AudioTrack):
            origin_s = item.time_s if origin_s is None else origin_s
            parts.append(item.samples)
            heard += item.samples.shape[-1]
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
        raise VideoError(unusable[0]) if unusable else SilentError("silent")
    notes += unusable


def _absurd(samples: np.ndarray) -> str | None:
    """Return why samples are no sound, or None."""
    if not np.isfinite(samples).all():
        return "samples that are not finite"
    if (peak := float(np.abs(samples).max())) > MAX_PEAK:
        return f"samples up to {peak:.3g} times full scale"
    return None
