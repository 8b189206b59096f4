"""Write small videos to train on, for docker/check.py: `python tiny_videos.py FOLDER COUNT`."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

SECONDS, FRAMES_PER_S, SAMPLE_RATE, SIDE = 2, 3, 16000, 64


def write_video(path: Path, *, hz: float, colour: str) -> None:
    """Write a clip of one colour and one tone, H.264 and AAC."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FRAMES_PER_S)
        video.width, video.height, video.pix_fmt = SIDE, SIDE, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        image = av.VideoFrame.from_image(Image.new("RGB", (SIDE, SIDE), colour))
        for n in range(SECONDS * FRAMES_PER_S):
            image.pts = n
            container.mux(video.encode(image))
        container.mux(video.encode(None))
        tone = 0.3 * np.sin(2 * np.pi * hz * np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE)
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for n, colour in zip(range(int(sys.argv[2])), ("red", "green", "blue", "white"), strict=False):
        write_video(folder / f"{n}.mp4", hz=220.0 * 2**n, colour=colour)
