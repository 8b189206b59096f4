"""A folder of made videos in the layout of VGGSound, with its names and faults.

Run: python -m tests.support.vggsound OUT [NUMBER]
"""

from __future__ import annotations

import csv
import multiprocessing
import sys
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.support.hostile import KINDS as HOSTILE

SECONDS, RATE, IMAGES_PER_S, SIDE = 10, 44100, 10, 64
KINDS = 300
LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
NAMES = ("{id}_{start:06d}.mp4", "{id}_{start}.mp4", "{id}_{start}_{end}.mp4", "{id}_{start}000_{end}000.mp4")
# One of so many videos has the fault.
BROKEN, COPY, GONE = 40, 100, 25


def write_vggsound(folder: Path, number: int, processes: int = 1) -> Path:
    """Write `number` videos below `folder`/videos; return the list of them, with a header line.

    Some are broken, some are copies; the list also names videos that are gone, and the folder has files that
    the list does not name.
    """
    videos = folder / "videos"
    videos.mkdir(parents=True)
    rows = [_row(n) for n in range(number)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(partial(_write, videos), range(number), chunksize=8)
    (videos / "readme.txt").write_text("not a video")
    for n in range(0, number, GONE):
        rows.append(_row(number + n))
    listing = folder / "vggsound.csv"
    with listing.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["YouTube ID", "start seconds", "label", "split"])
        writer.writerows(
            (video, start, f"kind {n % KINDS}", "train") for n, (video, start) in enumerate(rows)
        )
    return listing


def _row(n: int) -> tuple[str, int]:
    """Return id and start of video n; every tenth is another part of the video before."""
    rng = np.random.default_rng(n - (n % 10 == 9))
    return "".join(rng.choice(LETTERS, 11)), int(rng.integers(0, 300)) + 20 * (n % 10 == 9)


def _write(folder: Path, n: int) -> None:
    video, start = _row(n)
    path = folder / NAMES[n % len(NAMES)].format(id=video, start=start, end=start + SECONDS)
    if n % BROKEN == 7:
        HOSTILE[n // BROKEN % len(HOSTILE)][0](path, n // BROKEN)
        return
    write_scene(path, n - 1 if n % COPY == 13 else n)


def write_scene(path: Path, n: int) -> None:
    """Write a video in which a disc of the colour of its kind flashes with its sound."""
    kind, rng = np.random.default_rng(n % KINDS), np.random.default_rng(10**6 + n)
    colour, hz = kind.integers(60, 256, 3), 80 * 2 ** kind.uniform(0, 4.5)
    pulses, noise = kind.uniform(0.3, 4), kind.uniform(0, 0.5)
    time_s = np.arange(SECONDS * RATE) / RATE
    phase = 2 * np.pi * (pulses * rng.uniform(0.8, 1.25) * time_s + rng.uniform())
    envelope = np.maximum(np.sin(phase), 0) ** kind.uniform(0.5, 4)
    hz *= rng.uniform(0.9, 1.1)
    tone = sum(np.sin(2 * np.pi * hz * k * time_s) * rng.uniform(0.3, 1) / k for k in range(1, 6))
    sound = envelope * (tone + noise * rng.standard_normal(len(time_s)))
    sound = 10 ** rng.uniform(-1.5, -0.1) * sound / np.abs(sound).max()
    rows, columns = np.mgrid[:SIDE, :SIDE]
    background = rng.integers(0, 120, 3)
    with av.open(str(path), "w") as container:
        images = container.add_stream("libx264", rate=IMAGES_PER_S, options={"preset": "ultrafast"})
        images.width, images.height, images.pix_fmt = SIDE, SIDE, "yuv420p"
        track = container.add_stream("aac", rate=RATE, layout="mono")
        for i in range(SECONDS * IMAGES_PER_S):
            loud = envelope[i * RATE // IMAGES_PER_S]
            x, y = 32 + 16 * np.cos(i / 20 + n), 32 + 16 * np.sin(i / 30 + n)
            disc = (columns - x) ** 2 + (rows - y) ** 2 < (8 + 12 * loud) ** 2
            picture = np.where(disc[..., None], colour * (0.4 + 0.6 * loud), background)
            frame = av.VideoFrame.from_image(Image.fromarray(picture.astype(np.uint8)))
            frame.pts = i
            container.mux(images.encode(frame))
        container.mux(images.encode(None))
        heard = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        heard.sample_rate, heard.pts = RATE, 0
        container.mux(track.encode(heard))
        container.mux(track.encode(None))


if __name__ == "__main__":
    out, *more = sys.argv[1:]
    write_vggsound(Path(out), int(more[0]) if more else 2000, processes=2)
