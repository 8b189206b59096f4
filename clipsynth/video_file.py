"""Copy and write video files; each function runs in a limited child process. Needs PyAV."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import av
from av.container import InputContainer, OutputContainer
from av.stream import Disposition

from clipsynth.errors import TooLong, VideoUndecodable

if TYPE_CHECKING:
    # The API copies videos without NumPy.
    import numpy as np

KINDS = "MP4, MOV, WebM or Matroska"
# Codecs whose images a browser shows, and the container of a file with them.
CONTAINERS = {"h264": "mp4", "hevc": "mp4", "av1": "mp4", "mpeg4": "mp4", "vp8": "webm", "vp9": "webm"}
_DECODERS = "h264,hevc,libdav1d,av1,mpeg4,vp8,vp9"
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp")
_NOT_THE_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
MAX_PACKETS, MAX_PIXELS = 30_000, 40_000_000
# The codecs of sound, and the samples of their blocks: at this rate at most 22 ms.
SOUND_CODECS = {"mp4": ("aac", 1024), "webm": ("libopus", 960)}
SOUND_RATE, SOUND_BITS_PER_S = 48_000, 128_000


def copy_video(source: str, target: str, max_s: float) -> tuple[str, float]:
    """Copy the packets of a video's image track, without sound and metadata, into a file of its own.

    Rotation, edit list, aspect and colours are kept. The first image is shown at second 0.

    Returns:
        The extension of the file's container, and the seconds from the first image to the end of the last.

    Raises:
        VideoUndecodable: not a video of a known kind, or its first image cannot be decoded.
        TooLong: it is longer than `max_s`.
    """
    try:
        with open(source, "rb") as file:
            with open_video(file) as container:
                first, end = _measure(container, max_s)
                stream = video_stream(container)
                extension, unit_s = CONTAINERS[_codec(stream)], float(stream.time_base or 0)
            with open_video(file) as container, _create(target, extension) as output:
                stream = video_stream(container)
                for packet in _copied(container, stream, output, first, end):
                    output.mux(packet)
        return extension, (end - first) * unit_s
    except (av.FFmpegError, EOFError, ValueError, OverflowError) as error:
        raise VideoUndecodable(f"the video cannot be read: {error}") from None


def add_sound(source: str, target: str, waveform: np.ndarray, sample_rate: int, comment: str) -> None:
    """Write a file of `copy_video` again, with a sound (T,) float32: AAC in MP4, Opus in WebM."""
    extension = target.rpartition(".")[2]
    with open(source, "rb") as file, open_video(file) as container, _create(target, extension) as output:
        output.metadata["comment"] = comment
        images = _copied(container, video_stream(container), output, 0, None)
        codec, block = SOUND_CODECS[extension]
        sound: Any = output.add_stream(codec, rate=SOUND_RATE, layout="mono")
        sound.bit_rate = SOUND_BITS_PER_S
        sounds = _encoded(sound, waveform, sample_rate, block)
        for packet in heapq.merge(images, sounds, key=_seconds):
            output.mux(packet)


def _seconds(packet: av.Packet) -> float:
    return float((packet.dts if packet.dts is not None else packet.pts or 0) * packet.time_base)


def _encoded(stream: Any, waveform: np.ndarray, sample_rate: int, block: int) -> Iterator[av.Packet]:
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SOUND_RATE, frame_size=block)
    frame = av.AudioFrame.from_ndarray(waveform.astype("float32")[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = sample_rate, 0
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        yield from stream.encode(part)
    yield from stream.encode(None)


def open_video(file: BinaryIO) -> InputContainer:
    """Open a video by its first bytes, as one of two formats that name no other files.

    Raises:
        VideoUndecodable: it is of another kind.
    """
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    if head[4:8] in _BOXES:
        kind = "mov"
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        kind = "matroska"
    else:
        raise VideoUndecodable(f"not a video of a known kind; send {KINDS}")
    options = {"codec_whitelist": _DECODERS, "protocol_whitelist": ""}
    container: InputContainer = av.open(file, format=kind, options=options, metadata_errors="replace")
    return container


def video_stream(container: InputContainer) -> av.VideoStream:
    """Return the moving image track: the default one, or the largest.

    Raises:
        VideoUndecodable: there is none, or its codec is not one of `CONTAINERS`.
    """
    moving = [s for s in container.streams.video if not s.disposition & _NOT_THE_VIDEO]
    if not moving:
        raise VideoUndecodable("the video has no images")
    stream = max(moving, key=lambda s: (bool(s.disposition & Disposition.default), -s.index))
    if _codec(stream) not in CONTAINERS:
        known = ", ".join(CONTAINERS)
        raise VideoUndecodable(f"its codec is {_codec(stream)}; export it with one of {known}")
    return stream


def _codec(stream: av.VideoStream) -> str:
    return stream.codec_context.codec.canonical_name if stream.codec_context else "not known"


def _create(target: str, extension: str) -> OutputContainer:
    options = {"fflags": "+bitexact"}
    if extension == "mp4":
        options["movflags"] = "+faststart"
    output: OutputContainer = av.open(target, "w", format=extension, options=options)
    return output


def _copied(
    container: InputContainer, stream: av.VideoStream, output: OutputContainer, first: int, end: int | None
) -> Iterator[av.Packet]:
    """Yield the packets of a track for a copy of it, `first` earlier; the last one lasts until `end`."""
    copy = output.add_stream_from_template(stream, opaque=True)
    copy.time_base = stream.time_base
    return _shifted(container, stream, copy, first, end)


def _shifted(
    container: InputContainer, stream: av.VideoStream, copy: av.VideoStream, first: int, end: int | None
) -> Iterator[av.Packet]:
    held: av.Packet | None = None
    began: int | None = None
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.pts is not None:
            packet.pts -= first
        if packet.dts is not None:
            packet.dts -= first
        packet.stream = copy
        if held is None:
            began = packet.dts
        else:
            yield held
        held = packet
    if held is not None:
        if end is not None and began is not None and held.dts is not None and held.pts is not None:
            _fit_last(held, began, end - first)
        yield held


def _fit_last(packet: av.Packet, began: int, end: int) -> None:
    """Set duration and decoding time of the last packet so that its track ends at `end`.

    MP4 counts a track's duration by decoding times, players by the times of images.
    """
    packet.duration = max(0, min(end - packet.pts, end + began - packet.dts))
    packet.dts = max(packet.dts, min(packet.pts, end + began - packet.duration))


def _measure(container: InputContainer, max_s: float) -> tuple[int, int]:
    """Return the first and last time of the images, in units of the track; decode the first image.

    Raises:
        VideoUndecodable, TooLong: as `copy_video`.
    """
    stream = video_stream(container)
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoUndecodable(f"the images have more than {MAX_PIXELS} pixels")
    stream.codec_context.thread_count = 1
    limit = max_s / float(stream.time_base or 1)
    first = last = end = None
    shown, step, decoded = 0, 0, False
    for number, packet in enumerate(container.demux(stream)):
        if number > MAX_PACKETS:
            raise TooLong(f"a video may have {MAX_PACKETS} images")
        if not decoded:
            decoded = bool(packet.decode())
        if not packet.size or packet.pts is None or packet.is_discard:
            continue
        shown += 1
        first = packet.pts if first is None else min(first, packet.pts)
        if last is None or packet.pts > last:
            last, step = packet.pts, packet.duration or 0
        if last - first > limit:
            raise TooLong(f"a video may have {max_s:g} s")
    if first is None or last is None or not decoded:
        raise VideoUndecodable("no image of the video can be decoded")
    end = last + (step or (last - first) // max(1, shown - 1) or 1)
    return first, end
