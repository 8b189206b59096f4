import csv
import json

import numpy as np
import pytest

from evaluation.agreement import agreement, read_phrases, text_queries
from evaluation.classifier import SoundClassifier, train_classifier
from evaluation.clips import read_clips, read_labels
from evaluation.report import evaluate

RATE = 16000


def tone(hz, seconds, rng):
    t = np.arange(round(seconds * RATE)) / RATE
    return (np.sin(2 * np.pi * hz * t + rng.uniform(0, 6)) + 0.05 * rng.standard_normal(len(t))).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def classifier():
    rng = np.random.default_rng(0)
    hz = {"low": 200.0, "high": 3000.0}
    labels = ["low", "high"] * 16
    sounds = [tone(hz[label] * rng.uniform(0.9, 1.1), 4.2, rng) for label in labels]
    return train_classifier(sounds, labels, epochs=12)


def test_the_classifier_tells_held_out_sounds_apart_whatever_their_level_and_length(classifier):
    rng = np.random.default_rng(1)
    asked = ["low", "high"] * 5
    sounds = [
        0.01 * n * tone(210.0 if label == "low" else 2900.0, 2.0 + 0.3 * n, rng)
        for n, label in enumerate(asked, 1)
    ]
    assert classifier.classify(sounds) == asked


def test_a_saved_classifier_hears_the_same(classifier, tmp_path):
    classifier.save(tmp_path)
    sounds = [np.random.default_rng(n).standard_normal(RATE).astype(np.float32) for n in range(4)]
    assert SoundClassifier.load(tmp_path).classify(sounds) == classifier.classify(sounds)


def test_agreement_counts_hits_and_brackets_them():
    asked = ["a"] * 50 + ["b"] * 50
    heard = ["a"] * 40 + ["b"] * 10 + ["b"] * 50
    result = agreement(heard, asked)
    assert result.top1 == pytest.approx(0.9)
    assert result.low < 0.9 < result.high
    assert result.high - result.low == pytest.approx(4 * (0.9 * 0.1 / 100) ** 0.5, rel=0.2)
    assert result.per_class == {"a": 0.8, "b": 1.0}
    with pytest.raises(ValueError, match="as many"):
        agreement(["a"], [])


def test_text_queries_go_round_the_phrases_with_a_seed_each():
    queries = text_queries({"dog": ["x", "y"]}, 3, seed=5)
    assert [(q.prompt, q.seed) for q in queries] == [("x", 5), ("y", 6), ("x", 7)]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """The tone clips as a labelled folder: two to train on, two to validate."""
    path = tmp_path_factory.mktemp("labels") / "manifest.csv"
    with path.open("w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["file", "label", "split"])
        rows.writerows([["0.mp4", "low", "train"], ["3.mp4", "high", "train"]])
        rows.writerows([["1.mp4", "low", "validation"], ["2.mp4", "high", "validation"]])
    return path


def test_evaluate_writes_the_table_and_its_numbers(videos, labelled, tiny_bundle, tmp_path):
    queries = tmp_path / "queries.json"
    queries.write_text(json.dumps({"classes": {"low": ["a red thing"], "high": ["a blue thing"]}}))
    table = evaluate(
        tiny_bundle,
        clips=videos,
        labels=labelled,
        queries=queries,
        out=tmp_path,
        per_class=2,
        num_inference_steps=1,
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["chance"] == 0.5
    assert [results[name]["n"] for name in ("real validation clips", "text queries", "image queries")] == [
        2,
        4,
        4,
    ]
    assert f"{100 * results['text queries']['top1']:.1f} %" in table


def test_a_class_without_training_clips_is_named(videos, labelled, tiny_bundle, tmp_path):
    queries = tmp_path / "queries.json"
    queries.write_text('{"classes": {"zebra": ["a zebra"]}}')
    with pytest.raises(ValueError, match="zebra"):
        evaluate(tiny_bundle, clips=videos, labels=labelled, queries=queries, out=tmp_path)


def test_unusable_labels_videos_and_queries_are_named(videos, labelled, tmp_path):
    with pytest.raises(ValueError, match="'test'"):
        read_labels(labelled, "test")
    with pytest.raises(ValueError, match=r"lost\.mp4"):
        list(read_clips(videos, {"lost.mp4": "low"}))
    with pytest.raises(ValueError, match="no sound"):
        list(read_clips(videos, {"mute.mp4": "low"}))
    (tmp_path / "no.csv").write_text("file,label\n0.mp4,low\n")
    with pytest.raises(ValueError, match="split"):
        read_labels(tmp_path / "no.csv", "train")
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(ValueError, match="classes"):
        read_phrases(tmp_path / "no.json")
