import numpy as np
import pytest

from evaluation.clips import read_clips, read_labels, read_sources
from evaluation.embedders.classifier import SoundClassifier
from tests.support.evaluation_sounds import KINDS, synthetic

pytestmark = pytest.mark.slow


def test_the_classifier_ignores_level_and_length(judge):
    rng = np.random.default_rng(1)
    asked = [kind for kind in KINDS for _ in range(4)]
    sounds = [0.01 * n * synthetic(kind, rng, seconds=0.7 + 0.05 * n) for n, kind in enumerate(asked, 1)]
    heard = judge.probabilities(sounds)
    wanted = [judge.labels.index(kind) for kind in asked]
    assert (heard.argmax(1) == wanted).mean() > 0.8
    assert heard.sum(1) == pytest.approx(np.ones(16), abs=1e-5)


def test_a_saved_classifier_predicts_the_same(judge, tmp_path):
    judge.save(tmp_path)
    sounds = [np.random.default_rng(n).standard_normal(16000).astype(np.float32) for n in range(4)]
    loaded = SoundClassifier.load(tmp_path)
    assert loaded.labels == judge.labels
    np.testing.assert_array_equal(loaded.probabilities(sounds), judge.probabilities(sounds))


def test_unusable_labels_and_videos_are_named(videos, tmp_path):
    labels = tmp_path / "labels.csv"
    with pytest.raises(ValueError, match=r"no file of labels .*labels\.csv"):
        read_labels(labels, "train")
    labels.write_text("file,label,split,audio_source\n0.mp4,low,train,x;y\n1.mp4,low,train,\n")
    with pytest.raises(ValueError, match="'test'"):
        read_labels(labels, "test")
    assert read_sources(labels) == {"0.mp4": {"x", "y"}, "1.mp4": {"1.mp4"}}
    with pytest.raises(ValueError, match=r"lost\.mp4"):
        list(read_clips(videos, {"lost.mp4": "low"}))
    with pytest.raises(ValueError, match="no sound"):
        list(read_clips(videos, {"mute.mp4": "low"}))
    labels.write_text("file,label\n0.mp4,low\n")
    with pytest.raises(ValueError, match="split"):
        read_labels(labels, "train")
