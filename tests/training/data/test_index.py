"""The index of many clips is opened without its lines, and is read again when it changes."""

import json
import os

import numpy as np
import pytest
import torch

from tests.support.planted import planted_recipe, write_planted
from training.data.batches import Batches
from training.data.clips import load_clips
from training.data.index import COLUMNS, INDEX, open_index


def write_index(folder, clips):
    """Write the index of many clips, without their shards, as `prepare` writes it."""
    folder.mkdir()
    attributes = {"loudness_dbfs": -20.5, "centroid_hz": 1000.25, "flatness": 0.0125, "onsets_per_s": 1.5}
    with (folder / INDEX).open("w") as file:
        for n in range(clips):
            line = {
                "key": f"{n:016x}-{n % 5:04d}",
                "video": f"folder/{n // 5:08d}_{n % 300:06d}.mp4",
                "dev": n % 10 == 0,
                "start_s": 10.0 * (n % 5),
                "duration_s": 10.0,
                "gain": 1.5,
                "frames_s": [float(k) for k in range(10)],
                "attributes": attributes | {"f0_hz": 220.0 + n % 100, "voicing": 0.75},
                "motion": 0.25,
                "shard": f"{n % 1024:06d}-0123456789abcdef.tar",
                "arrays": {"waveform": [n * 512, 320128], "mel": [n * 1024, 128128], "embeds": [n, 10368]},
            }
            file.write(json.dumps(line) + "\n")
    return folder


def test_columns_say_what_the_lines_say(tmp_path):
    folder = write_planted(tmp_path / "clips", clips=9, dev=3)
    first, again = open_index(folder), open_index(folder)
    lines = [json.loads(text) for text in (folder / INDEX).read_text().splitlines()]
    for index in (first, again):
        assert list(index.lines(range(12))) == lines
        assert index.dev.tolist() == [line["dev"] for line in lines]
        assert index.attribute_names == ["kind"]
        for name, place in index.places.items():
            found = zip(place.shard, place.offset, place.size, strict=True)
            assert [(index.shards[s], o, z) for s, o, z in found] == [
                (line["shard"], *line["arrays"][name]) for line in lines
            ]


def test_a_changed_index_is_read_again_and_a_copy_is_not(tmp_path):
    folder = write_index(tmp_path / "clips", 20)
    open_index(folder)
    os.utime(folder / INDEX, (1, 1))
    made = (folder / COLUMNS).stat().st_mtime_ns
    assert len(open_index(folder)) == 20
    assert (folder / COLUMNS).stat().st_mtime_ns == made
    with (folder / INDEX).open("a") as file:
        file.write((folder / INDEX).read_text().splitlines()[0] + "\n")
    assert len(open_index(folder)) == 21
    (folder / COLUMNS).write_bytes(b"damaged")
    assert len(open_index(folder)) == 21


def test_a_folder_that_may_not_be_written_is_opened_too(tmp_path, monkeypatch):
    folder = write_index(tmp_path / "clips", 20)

    def refuse(*_):
        raise PermissionError(13, "denied")

    monkeypatch.setattr("training.data.index.save_file", refuse)
    assert len(open_index(folder)) == 20
    assert os.listdir(folder) == [INDEX]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 3 is damaged"),
        ('{"key": "a"}', "line 3 is damaged .*dev"),
        ("[]", "line 3 is damaged"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, text, message):
    folder = write_index(tmp_path / "clips", 2)
    with (folder / INDEX).open("a") as file:
        file.write(text + "\n")
    with pytest.raises(ValueError, match=rf"index\.jsonl: {message}.*; prepare again") as error:
        open_index(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"index": 3}'])
def test_a_damaged_correspondence_is_named(tmp_path, text):
    folder = write_planted(tmp_path / "clips", clips=3, dev=1)
    (folder / "agreement.json").write_text(text)
    with pytest.raises(ValueError, match=r"agreement\.json is damaged .*; run: clipsynth correspondence"):
        load_clips(folder)
    assert len(load_clips(folder, correspondence=False).train) == 3


def test_memory_of_a_clip_is_small(tmp_path):
    index = open_index(write_index(tmp_path / "clips", 2000))
    held = sum(column.nbytes for column in index._columns.values()) + index.correspondence.nbytes
    assert held / len(index) < 250
    assert (tmp_path / "clips" / COLUMNS).stat().st_size / len(index) < 250


def test_an_epochs_order_is_made_once(tmp_path, monkeypatch):
    clips = load_clips(write_planted(tmp_path / "clips", clips=9, dev=1)).train
    made = planted_recipe(tmp_path / "clips", tmp_path)
    expected = [
        i
        for epoch in range(2)
        for i in torch.randperm(9, generator=torch.Generator().manual_seed(made.seed + epoch)).tolist()
    ]
    orders, permute = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: orders.append(a) or permute(*a, **k))
    batches = Batches(clips, made)
    assert [i for n in range(4) for i in batches.clip_numbers(n)] == expected[:16]
    assert len(orders) == 2
    assert Batches(clips, made).clip_numbers(3) == expected[12:16]


def test_lines_of_a_split_are_a_sequence(tmp_path):
    clips = load_clips(write_planted(tmp_path / "clips", clips=5, dev=2))
    assert [line["video"] for line in clips.train.index] == [f"{n}.mp4" for n in range(5)]
    assert [line["video"] for line in clips.dev.index[:1]] == ["5.mp4"]
    assert clips.dev.index[-1]["video"] == "6.mp4"
    assert np.isclose(clips.train.duration_s(2), 1.0)
