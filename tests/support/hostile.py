"""Files that are called videos and are none, or none to learn from."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.support.videos import write_video

PLAYLIST = "#EXTM3U\n#EXTINF:2,\nhttp://127.0.0.1:9/{n}.mp4\n"


def write_hostile(folder: Path, number: int) -> dict[str, str]:
    """Write `number` files, ten kinds in turn; return {name: how its reason starts}."""
    reasons = {}
    for n in range(number):
        kind, reason = KINDS[n % len(KINDS)]
        path = folder / f"{n:03d}_{kind.__name__.strip('_')}.mp4"
        kind(path, n)
        reasons[path.name] = reason
    return reasons


def _empty(path: Path, _: int) -> None:
    path.write_bytes(b"")


def _random(path: Path, n: int) -> None:
    path.write_bytes(np.random.default_rng(n).bytes(5000 + n))


def _page(path: Path, n: int) -> None:
    path.write_text(f"<!DOCTYPE html><title>Video {n} is not available in your country</title>" * 50)


def _playlist(path: Path, n: int) -> None:
    path.write_text(PLAYLIST.format(n=n))


def _truncated(path: Path, n: int) -> None:
    data = write_video(path, hz=300 + n).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _mute(path: Path, n: int) -> None:
    write_video(path, seconds=1 + n / 30, sound=False)


def _silent(path: Path, n: int) -> None:
    write_video(path, samples=np.zeros(16000 + 100 * n), seconds=1.0)


def _short(path: Path, n: int) -> None:
    write_video(path, samples=0.1 * np.random.default_rng(n).standard_normal(4000), seconds=0.3)


def _pipe(path: Path, _: int) -> None:
    os.mkfifo(path)


def _giant(path: Path, n: int) -> None:
    """Write an image of 64 megapixels in a few kilobytes, with a second of noise."""
    with av.open(str(path), "w", format="mov") as container:
        images = container.add_stream("png", rate=1)
        images.width, images.height, images.pix_fmt = 8000, 8000, "gray"
        track = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        image = av.VideoFrame.from_image(Image.new("L", (8000, 8000), n)).reformat(format="gray")
        image.pts = 0
        container.mux(images.encode(image))
        noise = np.random.default_rng(n).integers(-3000, 3000, (1, 16000)).astype(np.int16)
        sound = av.AudioFrame.from_ndarray(noise, "s16", "mono")
        sound.sample_rate, sound.pts = 16000, 0
        container.mux(track.encode(sound))
        container.mux(images.encode(None))


KINDS = (
    (_empty, "cannot be decoded"),
    (_random, "cannot be decoded"),
    (_page, "cannot be decoded"),
    (_playlist, ""),
    (_truncated, "cannot be decoded"),
    (_mute, "no sound"),
    (_silent, "silent"),
    (_short, "shorter than"),
    (_pipe, "not a file"),
    (_giant, ""),
)
