"""Real video files of one colour and one tone."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_video(
    path: Path,
    *,
    seconds: float = 2.0,
    hz: float = 440.0,
    colour: str = "red",
    sound: bool = True,
    samples: np.ndarray | None = None,
    images: list[Image.Image] | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Write an H.264/AAC clip of one colour and tone, or `images` at 3 Hz and `samples` (T,) at 16 kHz."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        video = container.add_stream("libx264", rate=3)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        still = Image.new("RGB", (64, 64), colour)
        for n in range(round(3 * seconds)):
            image = av.VideoFrame.from_image(images[n] if images else still)
            image.pts = n
            container.mux(video.encode(image))
        container.mux(video.encode(None))
        if audio:
            tone = 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * 16000)) / 16000)
            heard = tone if samples is None else samples
            frame = av.AudioFrame.from_ndarray(heard[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


RATE = 48000
FLASHES_S = (1.0, 2.8)


def flashes(seconds: float = 4.0, rate: int = RATE) -> np.ndarray:
    """Return (T,) quiet noise with a loud click of 20 ms at each of `FLASHES_S`."""
    sound = 0.01 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    for time_s in FLASHES_S:
        sound[round(time_s * rate) : round((time_s + 0.02) * rate)] = 0.8
    return sound.astype(np.float32)


def write_flashes(
    path: Path,
    *,
    video: str = "libx264",
    audio: str = "aac",
    format: str | None = None,
    rate: int = RATE,
    fps: int = 25,
    size: tuple[int, int] = (160, 120),
    channels: np.ndarray | None = None,
    keep: Callable[[float], bool] = lambda time_s: True,
    start_s: float = 0.0,
    seconds: float = 4.0,
) -> Path:
    """Write a video with a white image for 40 ms and a click at each of `FLASHES_S`.

    Args:
        channels: the sound (C, T) at `rate` in place of `flashes`.
        keep: of a time in seconds, whether the sound is written there.
        start_s: added to all timestamps.
    """
    sound = flashes(seconds, rate)[None] if channels is None else channels
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
    with av.open(str(path), "w", format=format) as container:
        images = container.add_stream(video, rate=fps)
        images.width, images.height = size
        images.codec_context.gop_size = fps
        images.pix_fmt = "yuvj420p" if video == "mjpeg" else "yuv420p"
        track = container.add_stream(audio, rate=rate, layout=layout)
        if not audio.startswith("pcm"):
            track.bit_rate = 128_000
        resampler = av.AudioResampler(track.format.name, layout, rate, track.frame_size or 1024)
        position, shift = 0, round(start_s * fps)
        for n in range(round(seconds * fps)):
            white = any(abs(n / fps - time_s) < 0.5 / fps for time_s in FLASHES_S)
            image = av.VideoFrame.from_image(Image.new("RGB", size, "white" if white else "black"))
            image.pts, image.time_base = n + shift, Fraction(1, fps)
            container.mux(images.encode(image))
            end = round((n + 1) / fps * rate)
            if keep(n / fps):
                part = np.ascontiguousarray(sound[:, position:end], np.float32)
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = position + round(start_s * rate)
                for ready in resampler.resample(frame):
                    container.mux(track.encode(ready))
            else:
                for ready in resampler.resample(None):
                    container.mux(track.encode(ready))
                resampler = av.AudioResampler(track.format.name, layout, rate, track.frame_size or 1024)
            position = end
        for ready in resampler.resample(None):
            container.mux(track.encode(ready))
        container.mux(track.encode(None))
        container.mux(images.encode(None))
    return path


def spoken(seconds: float, rate: int = 16000) -> np.ndarray:
    """Return (T,) pulses of a voice through the formants of changing vowels, in syllables."""
    vowels = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410)]
    rng = np.random.default_rng(0)
    parts = []
    while sum(map(len, parts)) < seconds * rate:
        length = round(rng.uniform(0.12, 0.25) * rate)
        times = np.arange(length) / rate
        hz = rng.uniform(105, 145) * (1 + 0.1 * np.sin(2 * np.pi * 3 * times))
        phase = np.cumsum(hz) / rate
        sound = np.zeros(length)
        formants = vowels[rng.integers(len(vowels))]
        for k in range(1, 40):
            gain = sum(1 / (1 + ((k * 125 - f) / 90) ** 2) for f in formants) / k**0.5
            sound += gain * np.sin(2 * np.pi * k * phase)
        envelope = np.sin(np.pi * np.arange(length) / length) ** 0.5
        hiss = 0.02 * rng.standard_normal(round(rng.uniform(0.02, 0.06) * rate))
        parts += [0.1 * sound * envelope, hiss]
    return np.concatenate(parts)[: round(seconds * rate)].astype(np.float32)
