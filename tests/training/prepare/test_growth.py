"""A prepared folder follows its videos, and parts make the same bytes as one machine."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from clipsynth.limited_child import Limits
from clipsynth.services.limited_process import stream_limited
from tests.support.videos import spoken, write_video
from training.data.clips import load_clips
from training.prepare.features import VideoPreparer, speech_share
from training.prepare.finish import Filters
from training.prepare.folder import PrepareOptions
from training.prepare.prepare import PrepareError, merge, prepare

pytestmark = pytest.mark.slow

SMALL = PrepareOptions(shards=4, clip_s=2.0)
NAMES = "abcdefgh"


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    """Eight videos of different sounds."""
    folder = tmp_path_factory.mktemp("noises")
    for n, name in enumerate(NAMES):
        sound = 0.2 * np.random.default_rng(n).standard_normal(2 * 16000)
        write_video(folder / f"{name}.mp4", samples=sound)
    return folder


@pytest.fixture(scope="module")
def one_go(noises, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("one_go")
    list(prepare(noises, out, encoder, options=SMALL))
    return out


@pytest.fixture
def counted(monkeypatch):
    """Names of the videos that are decoded."""
    names = []
    own = VideoPreparer.__call__
    monkeypatch.setattr(
        VideoPreparer, "__call__", lambda self, task: names.append(task.name) or own(self, task)
    )
    return names


def contents(folder, report=False):
    files = [*(folder / "shards").iterdir(), folder / "index.jsonl", folder / "statistics.safetensors"]
    return {path.name: path.read_bytes() for path in files + [folder / "report.json"] * report}


def index(folder):
    return [json.loads(text) for text in (folder / "index.jsonl").read_text().splitlines()]


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_growth_makes_the_same_bytes(noises, one_go, encoder, tmp_path, counted):
    videos, out = tmp_path / "in", tmp_path / "out"
    videos.mkdir()
    for names in ("ce", "af", "bdgh"):
        for name in names:
            shutil.copy2(noises / f"{name}.mp4", videos)
        list(prepare(videos, out, encoder, options=SMALL))
    assert contents(out, report=True) == contents(one_go, report=True)
    assert "".join(name[0] for name in counted) == "ceafbdgh"


def test_a_new_video_rewrites_one_shard(noises, one_go, encoder, tmp_path):
    videos, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(noises, videos)
    shutil.copytree(one_go, out)
    write_video(videos / "new.mp4", samples=0.2 * np.random.default_rng(99).standard_normal(32000))
    list(prepare(videos, out, encoder, options=SMALL))
    before, after = ({p.name for p in (f / "shards").glob("*.tar")} for f in (one_go, out))
    assert len(after - before) == 1
    assert len(before - after) <= 1
    assert report(out)["clips"] == 9


def test_removed_renamed_and_replaced_videos(noises, one_go, encoder, tmp_path, counted):
    videos, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(noises, videos)
    shutil.copytree(one_go, out)
    (videos / "a.mp4").unlink()
    dev = {line["video"]: line["dev"] for line in index(out)}
    (videos / "b.mp4").rename(videos / "renamed.mp4")
    # The same size and time, another content.
    state = (videos / "c.mp4").stat()
    data = bytearray((videos / "c.mp4").read_bytes())
    data[-1] ^= 1
    (videos / "c.mp4").write_bytes(data)
    os.utime(videos / "c.mp4", ns=(state.st_atime_ns, state.st_mtime_ns))
    list(prepare(videos, out, encoder, options=SMALL))
    lines = {line["video"]: line for line in index(out)}
    assert lines.keys() == {*(f"{name}.mp4" for name in "cdefgh"), "renamed.mp4"}
    assert report(out)["removed"] == ["a.mp4", "b.mp4"]
    assert lines["renamed.mp4"]["dev"] == dev["b.mp4"]
    assert set(counted) >= {"c.mp4", "renamed.mp4"}
    clips = load_clips(out)
    assert len(clips.train) + len(clips.dev) >= 7
    list(prepare(videos, out, encoder, options=SMALL))
    assert report(out)["removed"] == []


def test_most_videos_are_not_dropped_by_mistake(noises, one_go, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("training.prepare.prepare.FEW", 2)
    out = tmp_path / "out"
    shutil.copytree(one_go, out)
    (tmp_path / "in").mkdir()
    shutil.copy2(noises / "a.mp4", tmp_path / "in")
    with pytest.raises(PrepareError, match=r"7 of the 8 videos of .* are gone .*--remove"):
        list(prepare(tmp_path / "in", out, encoder, options=SMALL))
    assert contents(out) == contents(one_go)
    list(prepare(tmp_path / "in", out, encoder, options=SMALL, remove=True))
    assert report(out)["clips"] == 1


def test_two_names_of_one_file_are_one_video(noises, encoder, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("x.mp4", "a.mp4"):
        shutil.copy(noises / "a.mp4", tmp_path / "in" / name)
    list(prepare(tmp_path / "in", tmp_path / "out", encoder))
    assert report(tmp_path / "out")["same_file"] == {"x.mp4": "a.mp4"}
    assert report(tmp_path / "out")["clips"] == 1


def test_merged_parts_have_the_bytes_of_one_machine(noises, one_go, encoder, tmp_path, monkeypatch, counted):
    parts = [tmp_path / f"{i}" for i in range(1, 5)]
    for i, part in enumerate(parts, 1):
        list(prepare(noises, part, encoder, options=SMALL, part=(i, 4)))
    assert sorted(counted) == [f"{name}.mp4" for name in NAMES]
    with pytest.raises(PrepareError, match="part 2/4 is missing"):
        merge(tmp_path / "out", [parts[0], parts[2], parts[3]])
    # Merging embeds no texts.
    monkeypatch.setattr("training.prepare.prepare.load_encoder", pytest.fail)
    merge(tmp_path / "out", parts)
    assert contents(tmp_path / "out", report=True) == contents(one_go, report=True)
    assert (tmp_path / "out" / "videos.jsonl").read_bytes() == (one_go / "videos.jsonl").read_bytes()
    # The merged folder grows like any other, and nothing is decoded again.
    counted.clear()
    list(prepare(noises, tmp_path / "out", encoder, options=SMALL))
    assert counted == []


def test_parts_that_do_not_fit_are_rejected(noises, one_go, encoder, tmp_path):
    part = tmp_path / "part"
    run = prepare(noises, part, encoder, options=SMALL)
    next(run), next(run)
    run.close()
    with pytest.raises(PrepareError, match="not prepared to its end"):
        merge(tmp_path / "out", [one_go, part])
    other = tmp_path / "other"
    list(prepare(noises, other, encoder, options=PrepareOptions(shards=4, clip_s=1.0)))
    with pytest.raises(PrepareError, match="other options"):
        merge(tmp_path / "out", [one_go, other])
    with pytest.raises(PrepareError, match="no folder that this version prepared"):
        merge(tmp_path / "out", [tmp_path])


def test_a_folder_of_an_earlier_version_is_left_alone(noises, one_go, encoder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(one_go, out)
    (out / "prepare.json").write_text('{"clip_s": 5.0, "frames_per_s": 1.0, "videos_per_shard": 64}')
    with pytest.raises(PrepareError, match="earlier version: training reads it"):
        list(prepare(noises, out, encoder, options=SMALL))
    assert len(load_clips(out).train.index) > 0


def test_a_video_that_hangs_is_skipped_and_tried_again(noises, encoder, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "ab":
        shutil.copy(noises / f"{name}.mp4", tmp_path / "in")
    (tmp_path / "in" / "b.mp4").unlink()
    os.mkfifo(tmp_path / "in" / "b.mp4")
    # As if the file became a pipe after the folder was listed.
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: path.exists() and not path.is_dir())
    limits = Limits(cpu_s=20, wall_s=3, memory_bytes=1 << 31, output_bytes=1 << 28)
    stream = partial(stream_limited, limits=limits)
    list(prepare(tmp_path / "in", tmp_path / "out", encoder, options=SMALL, stream=stream))
    assert report(tmp_path / "out")["skipped"] == {"b.mp4": "WallTimeExceeded: it took longer than 3 s"}
    (tmp_path / "in" / "b.mp4").unlink()
    shutil.copy(noises / "b.mp4", tmp_path / "in")
    list(prepare(tmp_path / "in", tmp_path / "out", encoder, options=SMALL, stream=stream))
    assert (report(tmp_path / "out")["skipped"], report(tmp_path / "out")["clips"]) == ({}, 2)


def test_still_images_and_speech_are_filtered(encoder, tmp_path):
    (tmp_path / "in").mkdir()
    moving = [Image.new("RGB", (64, 64), (40 * n, 0, 0)) for n in range(6)]
    for n, images in enumerate((moving, None)):
        sound = 0.2 * np.random.default_rng(n).standard_normal(32000)
        write_video(tmp_path / "in" / f"{n}.mp4", samples=sound, images=images)
    options = replace(SMALL, speech=True, frames_per_s=3.0)
    out = tmp_path / "out"
    list(prepare(tmp_path / "in", out, encoder, options=options))
    found = report(out)
    assert (found["clips"], found["still_share"], found["speech_share"]) == (2, 0.5, 0.0)
    tars = {path.name for path in (out / "shards").glob("*.tar")}
    run = prepare(tmp_path / "in", out, encoder, options=options, filters=Filters(min_motion=0.001))
    first, *_ = run
    assert first == (2, 2)
    assert (report(out)["clips"], report(out)["filtered"]) == (1, {"min_motion": 1})
    assert [line["video"] for line in index(out)] == ["0.mp4"]
    assert {path.name for path in (out / "shards").glob("*.tar")} == tars
    assert Filters(max_speech=0.5).reason({"motion": 1.0, "speech": 0.6}) == "max_speech"


def test_one_image_of_a_clip_says_nothing_of_motion(noises, encoder, tmp_path):
    options = replace(SMALL, frames_per_s=0.1)
    list(prepare(noises, tmp_path / "out", encoder, options=options, filters=Filters(min_motion=0.001)))
    found = report(tmp_path / "out")
    assert (found["clips"], found["still_share"], found["filtered"]) == (8, None, {})
    assert {line["motion"] for line in index(tmp_path / "out")} == {None}


def test_speech_is_found_in_speech_only():
    # Pulses through formants at a speaker's rhythm pass for speech; steady noise does not.
    noise = 0.2 * np.random.default_rng(0).standard_normal(4 * 16000).astype(np.float32)
    assert speech_share(noise, 16000) == 0
    assert speech_share(spoken(4.0), 16000) > 0.5
