"""Scenes of a video by the meaning of its images, and the video again with a sound."""

from __future__ import annotations

import hashlib
import io
import threading
from itertools import pairwise
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks.load.simulated import SimulatedPredictor
from benchmarks.load.workload import payload
from clipsynth.errors import NotFound, VideoUndecodable
from clipsynth.schemas.prompts import StoredVideo
from clipsynth.storage import Storage, result_video_key, scene_key, video_key
from clipsynth.video_file import copy_video
from tests.support.video_kinds import packet_hashes, spans_s, write_kind, write_scenes
from worker.engine import Engine, SamplingRequest
from worker.job_runner import JobRunner
from worker.video import MIN_SCENE_S, SampledVideo, Soundtrack, find_scenes, sample_video

ID = "gen_" + "0" * 26
FOLDER = f"{ID}/0123abcd"


def embed(images):
    """Embed an image by its mean colour, so that red, green and blue are orthogonal."""
    means = np.array([np.asarray(image.convert("RGB")).mean((0, 1)) for image in images], np.float32)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def scenes_of(path, **options):
    sampled = sample_video(str(path))
    images = [Image.open(io.BytesIO(data)) for data in sampled.images]
    return find_scenes(sampled, embed(images), options.pop("seconds", 3.0), **options)


def made(embeddings, step_s=0.5):
    rows = np.array(embeddings, np.float32)
    times_s = [n * step_s for n in range(len(rows))]
    sampled = SampledVideo(times_s, [b""] * len(rows), np.zeros((0, 2), np.float32))
    return sampled, rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["plain", "VP9", "turned", "10 bits", "late start"])
def test_a_scene_begins_where_the_images_change(kind, tmp_path):
    path = write_kind(kind, tmp_path)
    copy_video(str(path), str(tmp_path / "copy"), 60.0)
    scenes = scenes_of(tmp_path / "copy")
    assert [t for s in scenes for t in (s.start_s, s.end_s)] == pytest.approx([0, 1, 1, 2, 2, 3], abs=0.041)


def test_one_scene_has_no_cut(tmp_path):
    path = write_scenes(tmp_path / "a.mp4", ["red"])
    assert [(s.start_s, s.end_s) for s in scenes_of(path)] == [(0.0, 3.0)]


def test_a_slow_change_is_a_cut_too():
    angles = np.linspace(0, np.pi / 2, 20)
    sampled, rows = made(np.stack([np.cos(angles), np.sin(angles)], 1))
    assert max(1 - (rows[1:] * rows[:-1]).sum(1)) < 0.01
    assert len(find_scenes(sampled, rows, 10.0)) > 1


def test_a_flash_is_no_scene():
    sampled, rows = made([[1, 0]] * 6 + [[0, 1]] + [[1, 0]] * 6)
    scenes = find_scenes(sampled, rows, 6.5)
    assert all(scene.end_s - scene.start_s >= MIN_SCENE_S for scene in scenes)
    assert (scenes[0].start_s, scenes[-1].end_s) == (0.0, 6.5)
    assert all(a.end_s == b.start_s for a, b in pairwise(scenes))


def test_the_weakest_cuts_are_left_out():
    sampled, rows = made(np.repeat(np.eye(40), 4, 0))
    scenes = find_scenes(sampled, rows, 80.0, most=5)
    assert len(scenes) == 5
    assert scenes[-1].end_s == 80.0


@pytest.fixture
def stored(tmp_path):
    """Return a storage with a copied video of three scenes, and its description."""
    source, copy = write_scenes(tmp_path / "a.mp4"), tmp_path / "copy"
    extension, seconds = copy_video(str(source), str(copy), 60.0)
    storage = Storage((tmp_path / "results").as_uri())
    storage.put(video_key(ID, extension), copy)
    sha256 = hashlib.sha256(copy.read_bytes()).hexdigest()
    return storage, StoredVideo(extension=extension, sha256=sha256, seconds=seconds), source


def test_a_timeline_has_an_image_for_each_scene(stored):
    storage, video, _ = stored
    items = Soundtrack(storage, ID, FOLDER, video).timeline(embed, 2.5, "rain")
    assert (items[0].text, items[0].start_s, items[0].end_s) == ("rain", 0.0, 2.5)
    times_s = [time_s for item in items[1:] for time_s in (item.start_s, item.end_s)]
    assert times_s == pytest.approx([0, 1, 1, 2, 2, 2.5], abs=0.041)
    for n, item in enumerate(items[1:]):
        assert item.image_key == scene_key(FOLDER, n)
        data = storage.get(item.image_key)
        assert hashlib.sha256(data).hexdigest() == item.image_sha256
        assert np.asarray(Image.open(io.BytesIO(data))).mean((0, 1)).argmax() == n


def test_the_result_has_the_images_and_the_sound(stored, tmp_path):
    storage, video, source = stored
    track = Soundtrack(storage, ID, FOLDER, video)
    track.write(1, np.zeros(5 * 16_000, np.float32), 16_000, "generated; recipe 1")
    result = tmp_path / "result.mp4"
    result.write_bytes(storage.get(result_video_key(FOLDER, 1, "mp4")))
    assert packet_hashes(result) == packet_hashes(source)
    assert spans_s(result)["audio"] == pytest.approx((0, 3), abs=0.04)
    with av.open(str(result)) as container:
        assert container.metadata["comment"] == "generated; recipe 1"


def test_a_changed_or_removed_video_is_refused(stored):
    storage, video, _ = stored
    storage.put(video_key(ID, "mp4"), storage.get(video_key(ID, "mp4")) + b"x")
    with pytest.raises(VideoUndecodable, match="not the one"):
        Soundtrack(storage, ID, FOLDER, video).timeline(embed, 3.0, None)
    storage.delete(ID)
    with pytest.raises(NotFound):
        Soundtrack(storage, ID, FOLDER, video).timeline(embed, 3.0, None)


def test_a_job_leaves_no_temporary_files(stored, tmp_path, monkeypatch):
    storage, video, _ = stored
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    runner = JobRunner(SimulatedPredictor(0.0), None, storage, max_attempts=1)
    request = runner.request(ID, payload(video=video, prompt=None, duration_s=3.0), "0123abcd")
    assert len(request.prepare()) == 1
    request.results = {0: request.deliver(0, np.zeros(48_000, np.float32))}
    assert runner.final_state(ID, "0123abcd", request, None).status == "succeeded"
    assert not list(temporary.iterdir())


def test_a_slow_preparation_does_not_hold_up_others():
    engine = Engine(SimpleNamespace(), limit=1)
    released, others = threading.Event(), threading.Semaphore(0)

    def prepare_slowly():
        released.wait(60)
        return []

    def prepare():
        others.release()
        return []

    options = {"deliver": lambda *_: None, "num_rows": 0, "num_tokens": 1, "duration_s": 1.0}
    for _ in range(3):
        engine.submit(SamplingRequest(prepare_slowly, prepares_slowly=True, **options))
    for _ in range(3):
        engine.submit(SamplingRequest(prepare, **options))
    assert all(others.acquire(timeout=30) for _ in range(3))
    released.set()
    engine.start()
    engine.stop()
