"""Measure what `prepare` costs a clip, beside a bare decode of the same files with PyAV.

python -m benchmarks.model.prepare VIDEOS [--clips 100 --clips 1000]
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import av
import torch
import typer

from clipsynth.limited_child import Limits
from clipsynth.services.limited_process import stream_limited
from models.media.video import VIDEO_SUFFIXES
from models.networks.packaged import PackagedEncoder
from training.data.clips import load_clips
from training.prepare.prepare import prepare
from training.prepare.windows import Ending

LIMITS = Limits(cpu_s=600, wall_s=6000, memory_bytes=4 << 30, output_bytes=1 << 30)


def bare_decode(path: Path) -> None:
    """Decode every frame of the first video and audio streams."""
    with av.open(str(path)) as container:
        for _ in container.decode(video=0, audio=0):
            pass


def main(
    videos: Path,
    clips: Annotated[list[int], typer.Option(help="Numbers of videos.")] = [100, 1000],  # noqa: B006
) -> None:
    """Print a row of a table for each number of videos."""
    torch.set_num_threads(1)
    encoder = PackagedEncoder()
    encoder.class_anchors  # noqa: B018
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
            for _ in prepare(chosen, out, encoder, stream=stream):
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
