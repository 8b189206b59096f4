import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from safetensors.torch import load_file

from models.media.shards import ShardReader
from models.networks.open_clip import OpenClipEncoder
from models.networks.packaged import PackagedEncoder
from tests.support.constants import TINY_CLIP
from tests.support.shards import write_shard
from tests.support.videos import flashes, write_flashes, write_video
from training.data.clips import load_clips
from training.prepare.duplicates import fingerprint, near_duplicates
from training.prepare.folder import PrepareOptions
from training.prepare.prepare import BATCH, PrepareError, prepare

pytestmark = pytest.mark.slow


RATE = 16000
SMALL = PrepareOptions(shards=3)


@pytest.fixture(scope="module")
def prepared(videos, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    assert list(prepare(videos, out, encoder, options=SMALL))[-1] == (6, 6)
    return out


def contents(folder):
    """Return the bytes of everything that training reads, and of the report."""
    names = ("index.jsonl", "report.json", "statistics.safetensors", "prepare.json")
    files = [*sorted((folder / "shards").iterdir()), *(folder / name for name in names)]
    return {path.name: path.read_bytes() for path in files}


def test_good_videos_are_kept_and_the_bad_are_named(prepared):
    report = json.loads((prepared / "report.json").read_text())
    assert report["clips"] == 4
    assert set(report["skipped"]) == {"mute.mp4", "empty.mp4"}
    assert report["skipped"]["mute.mp4"] == "no sound"


def test_clips_are_levelled_and_hold_no_text(prepared):
    clips = load_clips(prepared)
    assert float(clips.train.waveform(0).abs().max()) == pytest.approx(0.5, abs=0.01)
    with tarfile.open(next((prepared / "shards").glob("*.tar"))) as tar:
        extensions = {name.partition(".")[2] for name in tar.getnames()}
    assert extensions == {"json", "waveform.npy", "mel.npy", "embeds.npy"}
    assert "captions" not in clips.train.index[0]
    assert clips.train.index[0]["attributes"]["f0_hz"] == pytest.approx(
        220 * 2 ** int(clips.train.index[0]["video"][0]), rel=0.02
    )


def test_statistics_are_those_of_the_training_clips(prepared):
    clips = load_clips(prepared)
    frames = np.concatenate([clips.train.mel(i).numpy() for i in range(len(clips.train))])
    np.testing.assert_allclose(clips.mel_mean, frames.mean(0), atol=1e-3)
    np.testing.assert_allclose(clips.mel_std, frames.std(0), rtol=1e-2)
    gains = [line["gain"] for line in clips.train.index]
    assert clips.output_gain == pytest.approx(1 / np.exp(np.mean(np.log(gains))), rel=1e-5)
    assert 0.5 < clips.output_gain < 0.9  # tones of peak 0.3 and AAC's overshoot, brought to 0.5


def test_captions_enter_only_when_asked_for(videos, encoder, tmp_path):
    (tmp_path / "captions.csv").write_text("file,caption\n0.mp4,a red tone\n0.mp4,a low tone\n")
    list(prepare(videos, tmp_path / "out", encoder, captions=tmp_path / "captions.csv"))
    lines = map(json.loads, (tmp_path / "out" / "index.jsonl").read_text().splitlines())
    (first,) = [line for line in lines if "captions" in line["arrays"]]
    assert (first["video"], first["captions"]) == ("0.mp4", ["a red tone", "a low tone"])


def test_a_killed_run_resumes_with_the_same_bytes(videos, prepared, encoder, tmp_path):
    run = prepare(videos, tmp_path, encoder, options=SMALL)
    assert [next(run) for _ in range(4)] == [(0, 6), (1, 6), (2, 6), (3, 6)]
    run.close()
    with (tmp_path / "work" / "records.jsonl").open("a") as file:
        file.write('{"video": "half a li')
    (tmp_path / "shards" / "000001.tmp").write_bytes(b"half a shard")
    assert next(prepare(videos, tmp_path, encoder, options=SMALL)) == (3, 6)
    list(prepare(videos, tmp_path, encoder, options=SMALL))
    assert contents(tmp_path) == contents(prepared)
    assert not (tmp_path / "work").exists()


def test_processes_make_the_same_bytes(videos, prepared, encoder, tmp_path):
    list(prepare(videos, tmp_path, encoder, options=SMALL, workers=2))
    assert contents(tmp_path) == contents(prepared)


def test_a_device_encodes_the_windows_of_all_processes(videos, prepared, encoder, tmp_path, monkeypatch):
    batches = []
    own = PackagedEncoder.encode_pixels

    def encode_pixels(self, pixels):
        batches.append(len(pixels))
        return own(self, pixels)

    monkeypatch.setattr(PackagedEncoder, "encode_pixels", encode_pixels)
    list(prepare(videos, tmp_path, encoder, options=SMALL, workers=2, device="cpu"))
    assert set(batches) == {BATCH}
    a, b = load_clips(tmp_path), load_clips(prepared)
    assert len(a.train) == len(b.train)
    for i in range(len(a.train)):
        np.testing.assert_array_equal(a.train.waveform(i), b.train.waveform(i))
        np.testing.assert_allclose(a.train.embeds(i), b.train.embeds(i), atol=2e-3)


def test_other_options_and_empty_folders_are_rejected(videos, prepared, encoder, tmp_path):
    with pytest.raises(PrepareError, match=r"with clip_s 5\.0, not 1\.0; .*use another folder"):
        list(prepare(videos, prepared, encoder, options=PrepareOptions(clip_s=1.0)))
    with pytest.raises(PrepareError, match="no videos"):
        list(prepare(tmp_path, tmp_path / "out", encoder))
    assert not (tmp_path / "out").exists()


def test_a_folder_keeps_to_one_encoder(videos, encoder, tmp_path):
    next(prepare(videos, tmp_path, encoder, options=SMALL))
    before = (tmp_path / "encoder" / "config.json").read_bytes()
    other = OpenClipEncoder("tiny", "random", TINY_CLIP)
    with pytest.raises(PrepareError, match="another encoder"):
        next(prepare(videos, tmp_path, other, options=SMALL))
    assert (tmp_path / "encoder" / "config.json").read_bytes() == before
    assert not (tmp_path / "encoder.tmp").exists()
    assert next(prepare(videos, tmp_path, encoder, options=SMALL)) == (0, 6)


def test_unusable_videos_are_explained_and_leave_no_index(encoder, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "zero.mp4").write_bytes(b"")
    with pytest.raises(PrepareError, match=r"none of .* cannot be decoded.*report\.json"):
        list(prepare(tmp_path / "in", tmp_path / "out", encoder))
    assert (
        "cannot be decoded"
        in json.loads((tmp_path / "out" / "report.json").read_text())["skipped"]["zero.mp4"]
    )
    assert not list((tmp_path / "out").glob("index*"))


def test_a_repeated_sound_is_left_out(encoder, tmp_path):
    rng = np.random.default_rng(0)
    noise = 0.2 * rng.standard_normal(3 * RATE)
    (tmp_path / "in").mkdir()
    for name, sound in (("a", noise), ("b", 0.2 * rng.standard_normal(3 * RATE)), ("c", 0.5 * noise)):
        write_video(tmp_path / "in" / f"{name}.mp4", seconds=3.0, samples=sound)
    list(prepare(tmp_path / "in", tmp_path / "out", encoder))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["clips"] == 2
    assert report["near_duplicates"] in (["a.mp4 at 0 s"], ["c.mp4 at 0 s"])


def test_prints_survive_level_and_differ_between_sounds():
    rng = np.random.default_rng(0)
    mels = [rng.standard_normal((200, 64)).cumsum(0) for _ in range(40)]
    prints = [fingerprint(mel) for mel in mels] + [
        fingerprint(mels[7] + 1.5 + 0.05 * rng.standard_normal((200, 64)))
    ]
    assert prints[0].nbytes == 64
    assert near_duplicates(prints) == {40: 7}


def test_a_damaged_shard_is_named(prepared, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    shard = next((copy / "shards").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:40_000])
    clips = load_clips(copy)
    i = next(i for i, line in enumerate(clips.train.index) if line["shard"] == shard.name)
    with pytest.raises(ValueError, match=r"\.tar is cut off"):
        clips.train.waveform(i), clips.train.mel(i)
    shard.unlink()
    with pytest.raises(ValueError, match="missing"):
        load_clips(copy).train.mel(i)


def test_shards_are_read_by_offset(tmp_path):
    arrays = {"x": np.arange(7, dtype=np.int16), "y": np.ones((2, 3), np.float16)}
    places = write_shard(tmp_path / "0.tar", [("a", {"n": 1}, arrays), ("b", {"n": 2}, arrays)])
    reader = ShardReader(tmp_path)
    assert places.keys() == {"a", "b"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(reader.read("0.tar", *places["b"][name]), array)
    opened = len(os.listdir("/proc/self/fd"))
    for n in range(1, 20):
        shutil.copy(tmp_path / "0.tar", tmp_path / f"{n}.tar")
        reader.read(f"{n}.tar", *places["a"]["x"])
    assert (
        len(os.listdir("/proc/self/fd")) == opened
    )  # a large set has more shards than a process may keep open


def test_the_generic_text_mean_is_kept(prepared, encoder):
    statistics = load_file(prepared / "statistics.safetensors")
    assert statistics["text_mean"].shape == statistics["image_mean"].shape == (encoder.embed_dim,)


def test_an_error_at_one_video_is_its_reason(encoder, tmp_path, monkeypatch):
    # Any exception, even one of our own code.
    def measure(*_):
        raise ZeroDivisionError("odd\nsound")

    write_video(tmp_path / "in.mp4")
    monkeypatch.setattr("training.prepare.features.measure", measure)
    with pytest.raises(PrepareError, match="ZeroDivisionError: odd sound"):
        list(prepare(tmp_path, tmp_path / "out", encoder))


def test_absurd_samples_reach_no_statistic(encoder, tmp_path):
    (tmp_path / "in").mkdir()
    for name, value in (("good", 0.3), ("nan", np.nan), ("huge", 1e29)):
        sound = flashes()
        sound[5000:5003] = value
        write_flashes(tmp_path / "in" / f"{name}.mov", audio="pcm_f32le", channels=sound[None])
    list(prepare(tmp_path / "in", tmp_path / "out", encoder, options=PrepareOptions(clip_s=2.0)))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["skipped"] == {}
    assert {name: reasons[0][:12] for name, reasons in report["damaged"].items()} == {
        "nan.mov": "samples that",
        "huge.mov": "samples up t",
    }
    statistics = load_file(tmp_path / "out" / "statistics.safetensors")
    assert all(bool(value.isfinite().all()) for value in statistics.values())
    assert 0.1 < float(statistics["gain"]) < 10


def test_only_one_process_prepares_a_folder(videos, encoder, tmp_path):
    run = prepare(videos, tmp_path, encoder, options=SMALL)
    next(run)
    with pytest.raises(PrepareError, match="another process prepares"):
        next(prepare(videos, tmp_path, encoder, options=SMALL))
    run.close()
    next(prepare(videos, tmp_path, encoder, options=SMALL))


def test_names_that_are_no_utf_8_are_prepared(encoder, tmp_path):
    (tmp_path / "in").mkdir()
    odd = os.fsdecode(b"caf\xe9.mp4")
    write_video(tmp_path / "in" / "x.mp4").rename(tmp_path / "in" / odd)
    list(prepare(tmp_path / "in", tmp_path / "out", encoder))
    assert json.loads((tmp_path / "out" / "index.jsonl").read_text())["video"] == odd
