"""Fixtures: a real Redis, a tiny real bundle, tiny real videos."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.processes import wait_until
from models.audio.level import level
from models.media.video import read_video
from models.networks.open_clip import OpenClipEncoder
from models.retrieval.clip_index import Index
from models.retrieval.thumbnails import Thumbnails
from models.tiny import build_tiny_pipeline
from tests.service import TIMEOUT_S, Serve

torch.set_num_threads(1)  # the networks are tiny, and a busy second core would only be waited for
os.environ.setdefault("OMP_NUM_THREADS", "1")  # nor do the processes that tests start need it
# Of full scale, by which a sound may differ in other company. An untrained network's mels are full of tones, whose oscillators grow what rounding changes; a
# trained one keeps to the 2e-3 of docs/api.md.
BATCHED_TOLERANCE = 1e-2


@pytest.fixture(scope="session")
def tiny_pipeline():
    return build_tiny_pipeline()


@pytest.fixture(scope="session")
def indexed_pipeline(videos):
    """A pipeline whose index has the clips of `videos`, with images of their sounds."""
    pipe = build_tiny_pipeline()
    files = [f"{n}.mp4" for n in range(4)]
    raw = [read_video(videos / file, sample_rate=16000) for file in files]
    clips = [
        {"video": file, "start_s": 0.5, "duration_s": 1.0, "source": f"source {n}", "licence": "CC0 1.0"}
        for n, file in enumerate(files)
    ]
    sounds = [torch.from_numpy(level(clip.waveform[8000:24000])[0])[None] for clip in raw]
    images = Thumbnails.of(
        [pipe.mel(sound)[0].numpy() for sound in sounds],
        [frozenset({file}) for file in files],
        frame_rate=100.0,
    )
    frames = [clip.frames[0].image for clip in raw]
    pipe.index = Index(pipe.encoder.encode_image(frames), clips, images)
    return pipe


@pytest.fixture(scope="session")
def tiny_bundle(indexed_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    indexed_pipeline.save_pretrained(folder)
    return folder


TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"width": 32, "layers": 1, "image_size": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"width": 32, "layers": 1, "context_length": 77, "vocab_size": 49408, "heads": 2},
}


@pytest.fixture(scope="session")
def open_clip_bundle(tmp_path_factory):
    """A bundle whose encoder is a tiny CLIP of open_clip, its weights in a local file."""
    folder = tmp_path_factory.mktemp("open_clip")
    torch.manual_seed(0)
    weights = folder / "weights.pt"
    torch.save(OpenClipEncoder("tiny-clip", "random", TINY_CLIP).model.state_dict(), weights)
    build_tiny_pipeline(encoder=OpenClipEncoder("tiny-clip", str(weights))).save_pretrained(folder / "bundle")
    weights.unlink()
    return folder / "bundle"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    server = EmbeddedRedis(tmp_path_factory.mktemp("data"))
    yield server.url
    server.stop()


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


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for n, colour in enumerate(("red", "green", "blue", "white")):
        write_video(folder / f"{n}.mp4", hz=220.0 * 2**n, colour=colour)
    write_video(folder / "mute.mp4", sound=False)
    (folder / "empty.mp4").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def served(tiny_bundle, tmp_path_factory):
    """A whole service with the tiny bundle, and its data folder. Tests may kill its children, for `serve` replaces them."""
    data_dir = tmp_path_factory.mktemp("serve")
    service = Serve(tiny_bundle, data_dir)
    assert wait_until(lambda: service.answers("/readyz"), timeout_s=TIMEOUT_S)
    service.wait_for_worker()
    yield service, data_dir
    service.stop()
