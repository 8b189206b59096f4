"""Fixtures: a real Redis, a tiny real bundle, tiny real videos.

Large libraries are imported in the fixtures that need them, so that light tests start at once.
"""

from __future__ import annotations

import os

import pytest

from clipsynth.services.processes import wait_until

# The networks are tiny, and a busy second core would only be waited for; so also in processes of tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def reads_are_fresh(monkeypatch):
    """Have a process read models and keys for each request, since tests change both at once."""
    from app import dependencies
    from clipsynth.jobs import model_registry

    monkeypatch.setattr(model_registry, "FRESH_S", 0.0)
    monkeypatch.setattr(dependencies, "KEYS_FRESH_S", 0.0)


@pytest.fixture(scope="session")
def tiny_pipeline():
    from tests.support.tiny import build_tiny_pipeline

    return build_tiny_pipeline()


@pytest.fixture(scope="session")
def indexed_pipeline(videos):
    """A pipeline whose index has the clips of `videos`, with images of their sounds."""
    import torch

    from models.audio.level import level
    from models.media.video import read_video
    from models.retrieval.clip_index import Index
    from models.retrieval.thumbnails import Thumbnails
    from tests.support.tiny import build_tiny_pipeline

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


@pytest.fixture(scope="session")
def open_clip_bundle(tmp_path_factory):
    """A bundle whose encoder is a tiny CLIP of open_clip, its weights in a local file."""
    import torch

    from models.networks.open_clip import OpenClipEncoder
    from tests.support.constants import TINY_CLIP
    from tests.support.tiny import build_tiny_pipeline

    folder = tmp_path_factory.mktemp("open_clip")
    torch.manual_seed(0)
    weights = folder / "weights.pt"
    torch.save(OpenClipEncoder("tiny-clip", "random", TINY_CLIP).model.state_dict(), weights)
    build_tiny_pipeline(encoder=OpenClipEncoder("tiny-clip", str(weights))).save_pretrained(folder / "bundle")
    weights.unlink()
    return folder / "bundle"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    from clipsynth.services.embedded_redis import EmbeddedRedis

    server = EmbeddedRedis(tmp_path_factory.mktemp("data"))
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    from tests.support.videos import write_video

    folder = tmp_path_factory.mktemp("videos")
    for n, colour in enumerate(("red", "green", "blue", "white")):
        write_video(folder / f"{n}.mp4", hz=220.0 * 2**n, colour=colour)
    write_video(folder / "mute.mp4", sound=False)
    (folder / "empty.mp4").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def served(tiny_bundle, tmp_path_factory):
    """A whole service with the tiny bundle, and its data folder. `serve` replaces killed children."""
    from tests.support.service import TIMEOUT_S, Serve

    data_dir = tmp_path_factory.mktemp("serve")
    service = Serve(tiny_bundle, data_dir)
    assert wait_until(lambda: service.answers("/readyz"), timeout_s=TIMEOUT_S)
    service.wait_for_worker()
    yield service, data_dir
    service.stop()


@pytest.fixture
def place(redis_url, tmp_path):
    """A worker's parts around a real Redis."""
    from clipsynth.settings import Settings
    from tests.support.workplace import Workplace

    place = Workplace(Settings(redis_url=redis_url, data_dir=tmp_path))
    yield place
    place.close()


@pytest.fixture
def heard():
    """A server that keeps the requests it gets."""
    from tests.support.http_server import listening

    with listening() as server:
        yield server


@pytest.fixture
def serve(redis_url, tmp_path):
    """Return a function that starts a service with these settings."""
    from clipsynth.settings import Settings
    from tests.support.api_client import Service

    services = []

    def start(**settings):
        service = Service(Settings(redis_url=redis_url, data_dir=tmp_path, **settings))
        service.client.__enter__()
        services.append(service)
        return service

    yield start
    for service in services:
        service.client.__exit__(None, None, None)
        service.redis.close()


MARKERS = {
    "redis": {"redis_url"},
    "service": {"served"},
    "browser": {"chromium", "page", "browser"},
}


def pytest_collection_modifyitems(items):
    """Mark each test by the fixtures that it uses and the folder that it lies in."""
    for item in items:
        for marker, fixtures in MARKERS.items():
            if fixtures & set(item.fixturenames):
                item.add_marker(marker)
        if "integration" in item.path.parts:
            item.add_marker("service")
