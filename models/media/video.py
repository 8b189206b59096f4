"""Read videos: the sound and a few frames, on one clock."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from PIL import Image

from models.audio.level import SILENT_PEAK
from models.media.images import display_matrix, upright_image
from models.media.tracks import SoundPlacer, audio_streams, downmix, video_stream

# Containers of videos that FFmpeg reads.
# fmt: off
VIDEO_SUFFIXES = {
    ".3g2", ".3gp", ".amv", ".asf", ".avi", ".divx", ".dv", ".evo", ".f4v", ".flv", ".gxf", ".ismv", ".lrv",
    ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mk3d", ".mkv", ".mod", ".mov", ".mp4", ".mpe",
    ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nsv", ".nut", ".nuv", ".ogm", ".ogv", ".ogx", ".qt", ".rm",
    ".rmvb", ".roq", ".swf", ".tod", ".tp", ".trp", ".ts", ".vob", ".vro", ".webm", ".wmv", ".wtv",
}
# fmt: on
LISTS = {"concat", "dash", "hls", "imf"}  # FFmpeg's formats of files that name other files
MIN_DURATION_S = 0.5
MAX_PIXELS = 40_000_000  # of an image; 8K has 33 million
SAMPLE_RATES = range(1000, 1_000_001)  # others are a broken header
BACK_S, FORTH_S = 0.5, 600.0  # jumps of a stream's timestamps beyond these start its clock again
MAX_FAILED_READS = 20


class VideoError(ValueError):
    """A video that cannot be used; the message is the reason."""


class SilentError(VideoError):
    """A video whose sound track is silent; another track may not be."""


@dataclass(frozen=True)
class AudioTrack:
    """A stretch of `samples` (2, T), or (T,) if mono, float32 that starts at `time_s`."""

    time_s: float
    samples: np.ndarray


@dataclass(frozen=True)
class Frame:
    """An image shown at `time_s`."""

    time_s: float
    image: Image.Image


@dataclass(frozen=True)
class Damage:
    """A part of a video that was lost, in words."""

    reason: str


@dataclass(frozen=True)
class RawClip:
    """`waveform` (T,) float32 as decoded, and `frames` in order of time.

    Second 0 is the first sample of the waveform.
    """

    waveform: np.ndarray
    frames: list[Frame]


def decode(
    path: Path, *, sample_rate: int, frames_per_s: float = 1.0, track: int = 0
) -> Iterator[AudioTrack | Frame | Damage]:
    """Yield a video's sound (stereo, `sample_rate`) and frames in file order, timed by PTS in seconds.

    The sound has no gaps: silence fills them. What cannot be decoded is left out, and counted at the end.

    Args:
        track: number of the sound track, the default one first.

    Raises:
        VideoError: not a video, or a video without image or sound.
    """
    with ExitStack() as stack:
        container = _open(path, stack)
        if container.format.name in LISTS:
            raise VideoError("a list of other files")
        video, tracks = video_stream(container), audio_streams(container)
        if video is None:
            raise VideoError("no image")
        if video.width * video.height > MAX_PIXELS:
            raise VideoError(f"images of {video.width} x {video.height} pixels")
        if not tracks:
            raise VideoError("no sound")
        if track >= len(tracks):
            raise VideoError("silent")
        placer = SoundPlacer(sample_rate)
        next_frame_s, failed = float("-inf"), 0
        matrices: dict[int, list[int]] = {}
        reformatter = VideoReformatter()
        for item in _decoded(container, (video, tracks[track])):
            if item is None:
                failed += 1
            elif isinstance(item, av.AudioFrame):
                if item.sample_rate not in SAMPLE_RATES:
                    raise VideoError(f"sound of {item.sample_rate} Hz")
                yield from (AudioTrack(*part) for part in placer.place(item))
            elif (item.time is None or item.time >= next_frame_s) and not item.is_corrupt:
                shown_s = 0.0 if item.time is None else item.time
                if item.rotation not in matrices:
                    matrices[item.rotation] = display_matrix(item)
                image = upright_image(item, video.sample_aspect_ratio, matrices[item.rotation], reformatter)
                yield Frame(shown_s, image)
                next_frame_s = max(next_frame_s, shown_s - 1e-3) + 1 / frames_per_s
        yield from (AudioTrack(*part) for part in placer.flush())
        if failed:
            yield Damage(f"{failed} packet{'s' if failed > 1 else ''} cannot be decoded")


def _open(path: Path, stack: ExitStack) -> InputContainer:
    """Open a file, which may not refer to others."""
    options = {"protocol_whitelist": "file"}
    # PyAV takes names in UTF-8 only.
    utf8 = not any("\udc80" <= letter <= "\udcff" for letter in str(path))
    source: Any = str(path.absolute()) if utf8 else stack.enter_context(path.open("rb"))
    try:
        return stack.enter_context(av.open(source, options=options, metadata_errors="replace"))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"cannot be decoded: {error.strerror}") from error


def _decoded(
    container: InputContainer, streams: tuple[av.VideoStream, av.AudioStream]
) -> Iterator[av.VideoFrame | av.AudioFrame | None]:
    """Yield the frames of the streams; None for a packet that fails."""
    clocks = Clocks()
    failed_reads = 0
    while failed_reads < MAX_FAILED_READS:
        try:
            for packet in container.demux(streams):
                clocks.put_right(packet)
                try:
                    yield from packet.decode()
                except av.FFmpegError:
                    if packet.size:
                        yield None
            return
        except av.FFmpegError:
            # Reading goes on after the damage.
            failed_reads += 1
            yield None


class Clocks:
    """Shifts the timestamps of streams that start again in the middle, as in files put end to end."""

    def __init__(self) -> None:
        self._shifts_s = [0.0]
        # By stream: the number of its shift, and start and end of its last packet.
        self._number: dict[int, int] = {}
        self._last_s: dict[int, tuple[float, float]] = {}
        # Seconds of a tick; asking a packet for it takes longer than the rest.
        self._tick_s: dict[int, float] = {}

    def put_right(self, packet: av.Packet) -> None:
        """Shift a packet, by a new amount if its timestamps jump."""
        dts, stream = packet.dts, packet.stream_index
        if dts is None:
            return
        if stream not in self._tick_s:
            self._tick_s[stream] = float(packet.time_base or 0)
        tick_s = self._tick_s[stream]
        time_s = dts * tick_s
        number = self._number.get(stream, 0)
        shifted_s = time_s + self._shifts_s[number]
        start_s, end_s = self._last_s.get(stream, (shifted_s, shifted_s))
        if not -BACK_S <= shifted_s - start_s <= FORTH_S:
            number += 1
            if number == len(self._shifts_s):
                self._shifts_s.append(end_s - time_s)
            shifted_s = time_s + self._shifts_s[number]
        self._number[stream] = number
        duration_s = min(1.0, (packet.duration or 0) * tick_s)
        self._last_s[stream] = shifted_s, shifted_s + duration_s
        if number and tick_s:
            shift = round(self._shifts_s[number] / tick_s)
            packet.dts = dts + shift
            packet.pts = None if packet.pts is None else packet.pts + shift


def read_video(path: Path, *, sample_rate: int, frames_per_s: float = 1.0) -> RawClip:
    """Read a whole video into memory; for short ones.

    Raises:
        VideoError: not a video, no image, no sound, silent, or shorter than half a second.
    """
    for track in itertools.count():
        items = list(decode(path, sample_rate=sample_rate, frames_per_s=frames_per_s, track=track))
        sounds = [item for item in items if isinstance(item, AudioTrack)]
        frames = [item for item in items if isinstance(item, Frame)]
        if not frames:
            raise VideoError("no image")
        waveform = downmix(np.concatenate([np.zeros((2, 0), np.float32), *(s.samples for s in sounds)], 1))
        if len(waveform) < MIN_DURATION_S * sample_rate:
            raise VideoError(f"shorter than {MIN_DURATION_S:g} s")
        if not is_silent(waveform):
            break
    start_s = sounds[0].time_s
    return RawClip(waveform, [Frame(f.time_s - start_s, f.image) for f in frames])


def is_silent(waveform: np.ndarray) -> bool:
    """Return whether (T,), without its mean, stays below -80 dB of full scale."""
    return bool(np.abs(waveform - waveform.mean()).max() < SILENT_PEAK)
