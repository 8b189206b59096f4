"""Real video files of one colour and one tone."""

from __future__ import annotations

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
) -> Path:
    """Write an H.264/AAC clip of one colour and one tone, or `samples` (T,) at 16 kHz."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=3)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        image = av.VideoFrame.from_image(Image.new("RGB", (64, 64), colour))
        for n in range(round(3 * seconds)):
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
