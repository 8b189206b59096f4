"""Are the scenes of a video heard, and is its soundtrack as long as its images?

python -m benchmarks.model.video_scenes BUNDLE CLIPS LABELS QUERIES YAMNET OUT [--videos 12] [--seeds 3]

Each video cuts every 4 s between the images of three validation clips of different classes. Its sound is
judged in each scene, beside a 4 s sound of the same image. OUT keeps the judge's embeddings, as does
`long_sounds`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import typer
from PIL import Image

from benchmarks.model.long_sounds import CLIP_S, RATE, Study, open_study, parts
from clipsynth.schemas.prompts import StoredVideo
from clipsynth.storage import Storage, result_video_key, video_key
from clipsynth.video_file import copy_video
from evaluation.clips import read_labels
from evaluation.metrics.class_accuracy import read_phrases
from models.media.video import read_video
from worker.video import Soundtrack

SCENES = 3
IMAGES_PER_S = 15


def write_video(path: Path, clips: list[Path]) -> Path:
    """Write the images of each clip for `CLIP_S`, without sound."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=IMAGES_PER_S, options={"preset": "veryfast"})
        stream.width = stream.height = 224
        stream.pix_fmt = "yuv420p"
        for clip in clips:
            frames = read_video(clip, sample_rate=RATE, frames_per_s=3.0).frames
            for n in range(round(CLIP_S * IMAGES_PER_S)):
                image = frames[n * len(frames) // round(5 * IMAGES_PER_S)].image.resize((224, 224))
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return path


def packets(path: Path) -> tuple[list[str], dict[str, float]]:
    """Return the hashes of the packets of the images, and the end of each track in seconds."""
    with av.open(str(path)) as container:
        found = list(container.demux(container.streams.video[0]))
    ends: dict[str, float] = {}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream.type] = max(end, ends.get(packet.stream.type, 0.0))
    return [hashlib.sha256(bytes(packet)).hexdigest() for packet in found if packet.size], ends


def soundtrack(
    study: Study, source: Path, folder: Path, seeds: int
) -> tuple[list[np.ndarray], Any, dict[str, Any]]:
    """Return a sound per seed, an image per scene, and what is found in the file of the first sound."""
    storage, generation_id = (
        Storage(str(folder)),
        f"gen_{hashlib.sha256(source.name.encode()).hexdigest()[:26]}",
    )
    extension, seconds = copy_video(str(source), str(folder / "copy"), 60.0)
    data = (folder / "copy").read_bytes()
    storage.put(video_key(generation_id, extension), data)
    stored = StoredVideo(extension=extension, sha256=hashlib.sha256(data).hexdigest(), seconds=seconds)
    attempt = f"{generation_id}/00000000"
    track = Soundtrack(storage, generation_id, attempt, stored)
    items = track.timeline(study.predictor.embed, round(seconds, 3), None)
    images = {i.image_key or "": Image.open(io.BytesIO(storage.get(i.image_key or ""))) for i in items}
    waves = [
        study.make(
            images=images, timeline=[i.model_dump() for i in items], duration_s=round(seconds, 3), seed=n
        )
        for n in range(seeds)
    ]
    track.write(0, waves[0], RATE, "made")
    (result := folder / f"result.{extension}").write_bytes(
        storage.get(result_video_key(attempt, 0, extension))
    )
    (before, _), (after, ends) = packets(source), packets(result)
    middles = [CLIP_S * (n + 0.5) for n in range(SCENES)]
    shown = [next(images[i.image_key or ""] for i in items if i.start_s <= t < i.end_s) for t in middles]
    cuts = [i.start_s for i in items[1:]]
    wanted = [CLIP_S * n for n in range(1, SCENES)]
    right = len(cuts) == len(wanted) and bool(np.allclose(cuts, wanted, atol=0.08))
    return (
        waves,
        shown,
        {
            "cuts": right,
            "packets equal": before == after,
            "sound within 40 ms": abs(ends["audio"] - ends["video"]) <= 0.04,
        },
    )


def main(
    bundle: Path,
    clips: Path,
    labels: Path,
    queries: Path,
    yamnet: Path,
    out: Path,
    videos: int = 12,
    seeds: int = 3,
    kinds: int = 19,
) -> None:
    """Measure a bundle."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    names = list(read_phrases(queries))[:kinds]
    study = open_study(bundle, clips, labels, names, yamnet, out)
    known = {file: label for file, label in read_labels(labels, "validation").items() if label in names}
    draw = np.random.default_rng(0)
    in_scene: list[bool] = []
    alone: list[bool] = []
    files = []
    for n in range(videos):
        chosen = [
            draw.choice([f for f in known if known[f] == kind]) for kind in draw.permutation(names)[:SCENES]
        ]
        wanted = [known[file] for file in chosen]
        with tempfile.TemporaryDirectory() as folder:
            source = write_video(Path(folder, f"{n}.mp4"), [clips / file for file in chosen])
            waves, shown, found = soundtrack(study, source, Path(folder), seeds)
        files.append(found)
        for seed, wave in enumerate(waves):
            own = [study.make(images={"x": image}, image_key="x", seed=1000 + seed) for image in shown]
            for made, hits in ((parts(wave), in_scene), (own, alone)):
                heard = study.heard(study.embed(made))
                hits += [label in h for label, h in zip(wanted, heard, strict=True)]
        print(n, wanted, found, np.mean(in_scene), np.mean(alone), flush=True)
    figures: dict[str, Any] = {name: sum(f[name] for f in files) for name in files[0]}
    figures |= {"videos": videos, "scenes": len(in_scene), "in scene": float(np.mean(in_scene))}
    figures["image alone"] = float(np.mean(alone))
    print(figures)
    (out / "video_scenes.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
