"""Clips behind a URL: the same clips as in a folder, copied to the node by whole shards."""

import contextlib
import hashlib
import json
import threading

import fsspec
import pytest
import torch

from clipsynth.services.processes import wait_until
from tests.support.planted import planted_recipe, write_planted
from training.data import remote
from training.data.clips import load_clips
from training.data.remote import RemoteShards
from training.state import load_state
from training.train import train


@pytest.fixture
def stored(tmp_path):
    """A prepared folder, and its copy behind a URL."""
    folder = write_planted(tmp_path / "local", clips=10, dev=2)
    name_by_content(folder)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/clips", recursive=True)
    yield folder, "memory://bucket/clips"
    memory.rm("/bucket", recursive=True)


def name_by_content(folder):
    """Name the shards after their content, as `prepare` does."""
    text = (folder / "index.jsonl").read_text()
    for shard in (folder / "shards").glob("*.tar"):
        name = f"{shard.stem}-{hashlib.sha256(shard.read_bytes()).hexdigest()[:16]}.tar"
        text = text.replace(shard.name, name)
        shard.rename(shard.with_name(name))
    (folder / "index.jsonl").write_text(text)


def cached(cache):
    return sorted(path.name for path in cache.glob("*/shards/*.tar"))


def test_a_url_gives_the_clips_of_the_folder(stored, tmp_path):
    folder, url = stored
    local, far = load_clips(folder), load_clips(url, cache=tmp_path / "cache")
    assert far.hashes == local.hashes
    assert list(far.train.index) == list(local.train.index)
    far.train.ahead(range(4), ["waveform", "embeds"])
    for i in range(len(local.train)):
        for read in ("pcm", "mel", "embeds"):
            assert torch.equal(getattr(far.train, read)(i), getattr(local.train, read)(i))


def test_shards_that_are_used_are_copied_once(stored, tmp_path, monkeypatch):
    _, url = stored
    cache = tmp_path / "cache"
    clips = load_clips(url, cache=cache).train
    clips.mel(0), clips.mel(1)
    assert wait_until(lambda: len(cached(cache)) == 2, timeout_s=120)
    monkeypatch.setattr(RemoteShards, "_get", None)
    again = load_clips(url, cache=cache).train
    again.ahead(range(len(again)), ["waveform"])
    for i in range(len(again)):
        again.mel(i)


def test_copies_of_other_processes_may_vanish_meanwhile(stored, tmp_path):
    _, url = stored
    clips = load_clips(url, cache=tmp_path / "cache").train
    (folder,) = (tmp_path / "cache").glob("*/shards")
    # As a copy that was renamed after the folder was listed.
    (folder / "other.tar.tmp").symlink_to(folder / "gone")
    clips.mel(0), clips.mel(1)
    assert wait_until(lambda: len(cached(tmp_path / "cache")) == 2, timeout_s=20)


def test_a_full_cache_reads_the_rest_from_the_storage(stored, tmp_path, monkeypatch):
    """Also if both shards are wanted at the same time."""
    folder, url = stored
    counted, both = RemoteShards._cached_bytes, threading.Barrier(2)

    def count_together(self):
        size = counted(self)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return size

    monkeypatch.setattr(RemoteShards, "_cached_bytes", count_together)
    size = max(path.stat().st_size for path in (folder / "shards").iterdir())
    clips = load_clips(url, cache=tmp_path / "cache", cache_gb=1.5 * size / 1e9).train
    for _ in range(2):
        for i in range(len(clips)):
            clips.mel(i)
        assert wait_until(lambda: len(cached(tmp_path / "cache")) == 1, timeout_s=120)


def test_a_damaged_shard_is_reported_and_not_cached(stored, tmp_path):
    folder, url = stored
    shard = sorted(path.name for path in (folder / "shards").iterdir())[0]
    memory = fsspec.filesystem("memory")
    data = bytearray(memory.cat_file(f"/bucket/clips/shards/{shard}"))
    data[-2000] ^= 1
    memory.pipe_file(f"/bucket/clips/shards/{shard}", bytes(data))
    clips = load_clips(url, cache=tmp_path / "cache").train

    def refused():
        try:
            clips.mel(0)
        except ValueError as error:
            return str(error) == f"{url}/shards/{shard} differs from its checksum; prepare again"
        return False

    assert wait_until(refused, timeout_s=120)
    assert cached(tmp_path / "cache") == []


def test_a_damaged_local_shard_is_found_in_the_background(stored):
    folder, _ = stored
    shard = sorted((folder / "shards").iterdir())[0]
    data = bytearray(shard.read_bytes())
    data[-2000] ^= 1
    shard.write_bytes(data)
    clips = load_clips(folder).train
    clips._reader.verify([shard.name]).join()
    with pytest.raises(ValueError, match=rf"{shard.name} differs from its checksum; delete it and prepare"):
        clips.mel(1)


def test_a_damaged_copy_is_replaced(stored, tmp_path):
    _, url = stored
    cache = tmp_path / "cache"
    clips = load_clips(url, cache=cache).train
    expected = clips.mel(0)
    assert wait_until(lambda: cached(cache), timeout_s=120)
    (copy,) = cache.glob(f"*/shards/{cached(cache)[0]}")
    copy.write_bytes(b"")
    assert torch.equal(clips.mel(0), expected)
    assert wait_until(lambda: copy.is_file() and copy.stat().st_size > 0, timeout_s=120)


def test_a_changed_folder_is_noticed(stored, tmp_path):
    folder, url = stored
    load_clips(url, cache=tmp_path / "cache")
    record = {"index": hashlib.sha256((folder / "index.jsonl").read_bytes()).hexdigest(), "clips": {}}
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/clips/agreement.json", json.dumps(record).encode())
    assert "agreement.json" in load_clips(url, cache=tmp_path / "cache").hashes
    memory.rm("/bucket/clips/agreement.json")
    assert "agreement.json" not in load_clips(url, cache=tmp_path / "cache").hashes


def test_a_storage_that_fails_for_moments_does_not_end_a_run(stored, tmp_path, monkeypatch):
    folder, url = stored
    monkeypatch.setattr(remote, "RETRY_AFTER_S", (0.0, 0.0))
    clips = load_clips(url, cache=tmp_path / "cache", cache_gb=1e-9).train
    memory, failures = type(fsspec.filesystem("memory")), iter([True, True, False, True, True, True])
    read = memory.cat_file

    def unsteady(self, *arguments, **options):
        if next(failures, False):
            raise OSError("slow down")
        return read(self, *arguments, **options)

    monkeypatch.setattr(memory, "cat_file", unsteady)
    assert torch.equal(clips.mel(0), load_clips(folder).train.mel(0))
    with pytest.raises(ValueError, match=r"\.tar cannot be read \(slow down\)"):
        clips.mel(0)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing/here", "memory://nothing/here holds no prepared clips; run: clipsynth prepare"),
        ("abacus://x", r"abacus://x cannot be read \(.*abacus"),
    ],
)
def test_an_unusable_url_is_one_line(tmp_path, url, message):
    with pytest.raises(ValueError, match=message) as error:
        load_clips(url, cache=tmp_path)
    assert "\n" not in str(error.value)


def test_shards_without_a_checksum_belong_to_their_index(tmp_path):
    memory = fsspec.filesystem("memory")
    read = []
    for seed in (0, 1):
        folder = write_planted(tmp_path / f"local{seed}", clips=4, dev=1, seed=seed)
        memory.put(str(folder), "/old/clips", recursive=True)
        clips = load_clips("memory://old/clips", cache=tmp_path / "cache").train
        clips.mel(0)
        assert wait_until(lambda s=seed: len(cached(tmp_path / "cache")) == s + 1, timeout_s=120)
        read.append(clips.mel(0))
        assert torch.equal(read[-1], load_clips(folder).train.mel(0))
        memory.rm("/old", recursive=True)


@pytest.mark.slow
def test_training_from_a_url_equals_training_from_a_folder(stored, tmp_path):
    folder, url = stored
    weights = []
    for name, clips, steps in (("local", folder, (4,)), ("far", url, (2, 4))):
        for n in steps:
            settings = (
                f"denoiser.steps={n}",
                "denoiser.mix_share=0.5",
                "denoiser.decay_share=0.0",
                f"cache={tmp_path}/c",
            )
            made = planted_recipe(clips, tmp_path / name, *settings)
            train(made, stage="denoiser")
        weights.append(load_state(tmp_path / name / "denoiser" / "state.pt")["weights"])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
