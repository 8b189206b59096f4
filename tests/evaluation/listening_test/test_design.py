"""The sounds of a listening test: their level, names and order."""

import csv
import json

import numpy as np
import pytest
import soundfile

from evaluation.interfaces import Query
from evaluation.listening_test.design import (
    TARGET_DBFS,
    choose,
    level_dbfs,
    make_items,
    match_levels,
    order,
    read_folder,
)
from evaluation.plan import Sample, once
from models.audio.level import MAX_PEAK
from tests.support.rated_sounds import RATE, tone, write_manifest, write_sound


def test_all_sounds_are_played_at_one_level(items):
    levels = [level_dbfs(*soundfile.read(_as_file(item))) for item in items]
    assert levels == pytest.approx([TARGET_DBFS] * 4, abs=0.1)


def _as_file(item):
    import io

    return io.BytesIO(item.wav())


def test_all_sounds_are_lowered_so_that_none_clips(folder):
    click = np.zeros(RATE // 2)
    click[100] = 1.0
    write_sound(folder / "A-0.wav", click)
    waves = [soundfile.read(_as_file(item))[0] for item in make_items(read_folder(folder), seed=0)]
    levels = [level_dbfs(wave, RATE) for wave in waves]
    assert max(abs(wave).max() for wave in waves) == pytest.approx(MAX_PEAK, abs=1e-3)
    assert max(levels) < TARGET_DBFS - 5
    assert levels == pytest.approx([levels[0]] * 4, abs=0.1)


def test_pauses_do_not_count_and_silence_stays_silence(folder):
    with_pause = np.concatenate([tone(0.1, 2.0), np.zeros(4 * RATE)])  # its plain RMS is 4.8 dB lower
    assert level_dbfs(with_pause, RATE) == pytest.approx(level_dbfs(tone(0.1), RATE), abs=0.5)
    write_sound(folder / "A-0.wav", np.zeros(RATE))
    gains = match_levels(read_folder(folder))
    assert gains[0] == 1.0
    assert min(gains[1:]) > 0


def test_item_names_are_blind_and_each_rater_has_an_own_order(items):
    assert not any(word in item.id for item in items for word in ("A", "B", "dog", "rain"))
    names = [item.id for item in items]
    assert [i.id for i in order(items, 0, "anna")] == [i.id for i in order(items[::-1], 0, "anna")]
    orders = {tuple(i.id for i in order(items, 0, f"rater {n}")) for n in range(20)}
    assert len(orders) > 5
    assert all(sorted(o) == sorted(names) for o in orders)


def test_the_same_queries_are_chosen_of_every_system(folder):
    chosen = choose(read_folder(folder), 1, seed=3)
    assert [s.system for s in chosen] == ["A", "B"]
    assert len({s.query for s in chosen}) == 1


def test_results_of_evaluate_are_a_test_of_the_text_queries(tmp_path):
    settings = {"systems": {"CLIPSynth": "v1", "CLIPRetriever": "v2", "vocoder": "v3"}}
    (tmp_path / "results.json").write_text(json.dumps({"settings": settings}))
    with (tmp_path / "queries.csv").open("w", newline="") as f:
        csv.writer(f).writerows(
            [
                ("kind", "clip", "seed", "label", "prompt", "duration_s"),
                ("text", "dogs/1.mp4", "0", "dog", "a dog", "4.0"),
                ("text", "cats/1.mp4", "1", "cat", "a cat", "4.0"),
                ("text", "dogs/1.mp4", "2", "dog", "a hound", "4.0"),
                ("image", "dogs/1.mp4", "0", "dog", "", "4.0"),
            ]
        )
    asked = [
        Sample(Query("dog", "dogs/1.mp4", "a dog"), 0),
        Sample(Query("cat", "cats/1.mp4", "a cat"), 1),
        Sample(Query("dog", "dogs/1.mp4", "a hound"), 2),
    ]
    for version, made in (("v1", asked), ("v2", [once(sample) for sample in asked])):
        for sample in made:
            write_sound(tmp_path / f"sounds/{version}/{sample.stem}.flac", tone(0.1))
    write_sound(tmp_path / "sounds/v3/clip-dogs-1-0-def.flac", tone(0.1))
    assert [(s.system, s.query, s.file.stem) for s in read_folder(tmp_path)] == [
        ("CLIPSynth", "a dog", asked[0].stem),
        ("CLIPSynth", "a cat", asked[1].stem),
        ("CLIPRetriever", "a dog", once(asked[0]).stem),
        ("CLIPRetriever", "a cat", once(asked[1]).stem),
    ]


def test_what_is_no_test_is_refused(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="neither a manifest"):
        read_folder(tmp_path_factory.mktemp("empty"))
    write_manifest(folder, [("A", "rain", "A-0.wav"), ("B", "a dog", "B-0.wav")])
    with pytest.raises(ValueError, match="A has no sound for 'a dog'"):
        read_folder(folder)
    write_manifest(folder, [("A", "rain", "lost.wav")])
    with pytest.raises(ValueError, match=r"lost\.wav is not there"):
        read_folder(folder)
    (folder / "manifest.csv").write_text("system,file\nA,A-0.wav\n")
    with pytest.raises(ValueError, match="column 'query'"):
        read_folder(folder)
    for content, message in ((b"no sound", "cannot be read"), (None, "not finite")):
        write_manifest(folder, [("A", "rain", "bad.wav")])
        if content is None:
            write_sound(folder / "bad.wav", [np.nan, 0.0])
        else:
            (folder / "bad.wav").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            make_items(read_folder(folder), seed=0)
