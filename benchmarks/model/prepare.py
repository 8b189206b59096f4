"""Measure what `prepare` costs a clip, beside a bare decode of the same files with PyAV.

python -m benchmarks.model.prepare VIDEOS [--clips 100 --clips 1000] [--make]
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import torch
import typer

from clipsynth.limited_child import Limits
from clipsynth.services.limited_process import stream_limited
from models.media.video import VIDEO_SUFFIXES
from models.networks.multilingual import MultilingualEncoder
from training.data.clips import load_clips
from training.prepare.folder import PrepareOptions
from training.prepare.prepare import prepare
from training.prepare.windows import Ending

LIMITS = Limits(cpu_s=600, wall_s=6000, memory_bytes=4 << 30, output_bytes=1 << 30)
SCENES, RATE = 20, 16000


def bare_decode(path: Path) -> None:
    """Decode every frame of the first video and audio streams."""
    with av.open(str(path)) as container:
        for _ in container.decode(video=0, audio=0):
            pass


def make_videos(folder: Path, number: int, seconds: float, size: tuple[int, int], rate: int) -> None:
    """Write distinct H.264/AAC videos: each its own sound, with the images of one of a few videos."""
    folder.mkdir(parents=True)
    scenes = [folder / f"scene-{n}" for n in range(SCENES)]
    for n, scene in enumerate(scenes):
        rng = np.random.default_rng(n)
        with av.open(str(scene), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            wide = rng.integers(0, 256, (size[1], 2 * size[0], 3)).cumsum(1) % 2560 // 10
            for i in range(round(seconds * rate)):
                part = wide[:, i % size[0] :][:, : size[0]].astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(part), "rgb24")))
            container.mux(stream.encode(None))
    for n in range(number):
        rng = np.random.default_rng(SCENES + n)
        time_s = np.arange(round(seconds * RATE)) / RATE
        hz, pulses = rng.uniform(100, 2000, (4, 1)), rng.uniform(1, 9, (4, 1))
        sound = (np.sin(2 * np.pi * hz * time_s) * np.maximum(0, np.sin(6.28 * pulses * time_s))).mean(0)
        sound += rng.uniform(0, 0.1) * rng.standard_normal(len(time_s))
        with av.open(str(scenes[n % SCENES])) as source, av.open(str(folder / f"{n:05d}.mp4"), "w") as made:
            images = made.add_stream_from_template(source.streams.video[0])
            track = made.add_stream("aac", rate=RATE, layout="mono")
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = images
                    made.mux(packet)
            frame = av.AudioFrame.from_ndarray(0.3 * sound[None].astype(np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = RATE, 0
            made.mux(track.encode(frame))
            made.mux(track.encode(None))
    for scene in scenes:
        scene.unlink()


def main(
    videos: Path,
    clips: Annotated[list[int], typer.Option(help="Numbers of videos.")] = [100, 1000],  # noqa: B006
    make: Annotated[bool, typer.Option("--make", help="Write the videos first.")] = False,
    seconds: Annotated[float, typer.Option(help="Length of videos and clips.")] = 5.0,
    size: Annotated[tuple[int, int], typer.Option(help="Of the videos that are made.")] = (320, 240),
    rate: Annotated[int, typer.Option(help="Of the videos that are made, in Hz.")] = 25,
    frames_per_s: Annotated[float, typer.Option(help="Images to embed.")] = 1.0,
) -> None:
    """Print a row of a table for each number of videos."""
    torch.set_num_threads(1)
    if make:
        make_videos(videos, max(clips), seconds, size, rate)
    encoder = MultilingualEncoder()
    encoder.class_anchors  # noqa: B018
    options = PrepareOptions(clip_s=seconds, frames_per_s=frames_per_s)
    files = sorted(p for p in videos.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    print("| videos | clips | CPU ms a clip | decoding | bare decode | ratio | peak MB | of a decoder |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for number in clips:
        began = time.process_time()
        for path in files[:number]:
            bare_decode(path)
        bare_s = time.process_time() - began
        endings: list[Ending] = []

        def stream(*arguments: Any, endings: list[Ending] = endings) -> Iterator[Any]:
            for item in stream_limited(*arguments, limits=LIMITS):
                if isinstance(item, Ending):
                    endings.append(item)
                yield item

        with tempfile.TemporaryDirectory() as folder:
            chosen, out = Path(folder, "videos"), Path(folder, "out")
            chosen.mkdir()
            for path in files[:number]:
                (chosen / path.name).symlink_to(path.resolve())
            began = time.process_time()
            for _ in prepare(chosen, out, encoder, options=options, stream=stream):
                pass
            own_s = time.process_time() - began
            made = load_clips(out)
            count = len(made.train) + len(made.dev)
        decode_s = sum(ending.cpu_s for ending in endings)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        decoder = max(ending.peak_bytes for ending in endings) >> 20
        ms = [1000 * seconds / count for seconds in (own_s + decode_s, decode_s, bare_s)]
        print(
            f"| {number} | {count} | {ms[0]:.0f} | {ms[1]:.1f} | {ms[2]:.1f} | {ms[0] / ms[2]:.1f} "
            f"| {peak} | {decoder} |",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
