"""Video files as phones, screen recorders, browsers and editors write them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

RATE = 25
QUIET = {"libx265": {"x265-params": "log-level=error"}, "libsvtav1": {"preset": "12"}}
FAST = {"libx264": {"preset": "ultrafast", "bf": "2"}, "libvpx": {"deadline": "realtime", "cpu-used": "8"}}
FAST["libvpx-vp9"] = FAST["libvpx"]
# Name, extension and arguments of `write_kind`.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("mp4", {}),
    "turned": ("mov", {"rotation": 90}),
    "upside down": ("mp4", {"rotation": 180}),
    "variable rate": ("mp4", {"times_s": [*np.arange(30) / 25, *(1.2 + 0.28 * np.arange(10))]}),
    "jitter": ("mp4", {"times_s": np.arange(75) / 25 + 0.003 * (np.arange(75) % 3)}),
    "HEVC": ("mov", {"codec": "libx265", "options": {"tag": "hvc1"}}),
    "10 bits": ("mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le"}),
    "VP9": ("webm", {"codec": "libvpx-vp9", "audio": "libopus"}),
    "VP8": ("webm", {"codec": "libvpx", "audio": "libopus"}),
    "VP9 in MP4": ("mp4", {"codec": "libvpx-vp9"}),
    "AV1": ("mp4", {"codec": "libsvtav1"}),
    "AV1 in WebM": ("webm", {"codec": "libsvtav1", "audio": "libopus"}),
    "edit list": ("mp4", {"start_s": -1.3}),
    "late start": ("mp4", {"start_s": 0.7}),
    "no sound": ("mp4", {"audio": None}),
    "wide pixels": ("mp4", {"aspect": Fraction(4, 3)}),
    "4K": ("mp4", {"size": (3840, 2160), "seconds": 0.6}),
    "fragments": ("mp4", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    "recorded in a browser": ("webm", {"codec": "libvpx", "audio": "libopus", "muxer": {"live": "1"}}),
    "screen recorder": ("mkv", {}),
    "one image": ("mp4", {"seconds": 1 / RATE}),
}


def write_kind(name: str, folder: Path) -> Path:
    """Write the video of a kind; return its path."""
    extension, options = KINDS[name]
    return write_scenes(folder / f"{name}.{extension}", **options)


def write_scenes(
    path: Path,
    colours: Sequence[Any] = ("red", "green", "blue"),
    *,
    seconds: float = 3.0,
    codec: str = "libx264",
    audio: str | None = "aac",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (160, 120),
    times_s: Sequence[float] | None = None,
    start_s: float = 0.0,
    rotation: int = 0,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Write a video that cuts from colour (or image) to colour in equal times."""
    times_s = np.arange(round(seconds * RATE)) / RATE if times_s is None else times_s
    tag = (options or {}).get("tag")
    with av.open(str(path), "w", options=muxer or {}) as container:
        video = container.add_stream(codec, rate=RATE, options=QUIET.get(codec, FAST.get(codec, {})))
        (video.width, video.height), video.pix_fmt = size, pix_fmt
        video.codec_context.time_base, video.time_base = Fraction(1, 12800), Fraction(1, 12800)
        if tag:
            video.codec_context.codec_tag = tag
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        if rotation:
            video.set_display_rotation(rotation)
        sound = container.add_stream(audio, rate=48000, layout="mono") if audio else None
        packets = list(_images(video, colours, size, times_s, pix_fmt))
        for packet in packets:
            shift = round(start_s / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            container.mux(packet)
        if sound:
            samples = np.sin(np.arange(round(seconds * 48000)) / 20).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(0.3 * samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, 0
            resampler = av.AudioResampler(
                format=sound.codec_context.format.name, layout="mono", rate=48000, frame_size=960
            )
            for part in (*resampler.resample(frame), *resampler.resample(None)):
                container.mux(sound.encode(part))
            container.mux(sound.encode(None))
    return path


def _images(
    video: Any, colours: Sequence[Any], size: tuple[int, int], times_s: Sequence[float], pix_fmt: str
) -> Iterator[av.Packet]:
    for n, time_s in enumerate(times_s):
        colour = colours[n * len(colours) // len(times_s)]
        image = Image.new("RGB", size, colour) if isinstance(colour, str) else colour.resize(size)
        image.paste("white", (n % 20, 0, n % 20 + 4, 4))
        frame = av.VideoFrame.from_image(image).reformat(format=pix_fmt)
        frame.pts, frame.time_base = round(time_s * 12800), Fraction(1, 12800)
        yield from video.encode(frame)
    yield from video.encode(None)


def packet_hashes(path: Path) -> list[str]:
    """Return the hashes of the packets of the image track, in the order of the file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [
            hashlib.sha256(bytes(packet)).hexdigest() for packet in container.demux(stream) if packet.size
        ]


def spans_s(path: Path) -> dict[str, tuple[float, float]]:
    """Return begin and end of the decoded images and sound, by the type of their track."""
    found: dict[str, tuple[float, float]] = {}
    with av.open(str(path)) as container:
        kinds = [stream.type for stream in container.streams]
    for kind in kinds:
        with av.open(str(path)) as container:
            frames = container.decode(container.streams.best(kind))
            shown = [(frame.time, frame.time + _lasts_s(frame)) for frame in frames]
        found[kind] = min(shown)[0], max(end for _, end in shown)
    return found


def _lasts_s(frame: Any) -> float:
    if isinstance(frame, av.AudioFrame):
        return frame.samples / frame.sample_rate
    return float((frame.duration or 0) * frame.time_base)
