import builtins

import numpy as np
import pytest

from evaluation.embedders.base import JudgingEmbedder, embed_all, load_embedder
from evaluation.embedders.linear_judge import LinearJudge

WINDOW, DIM = 15600, 4


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A file whose embedding is the correlation of a window with four fixed rows."""
    pytest.importorskip("ai_edge_litert", reason="needs the extra `yamnet`")
    from tests.support.tflite import write_dense

    path = tmp_path_factory.mktemp("yamnet") / "tiny.tflite"
    rows = np.random.default_rng(0).standard_normal((DIM, WINDOW))
    write_dense(path, rows)
    return path, rows


def test_yamnet_embeds_windows_of_a_levelled_sound(network):
    from evaluation.embedders.yamnet import LEVEL, YamNet

    path, rows = network
    embedder = YamNet(path, dim=DIM)
    sound = np.random.default_rng(1).standard_normal(64000).astype(np.float32) * 0.01
    embeds = embed_all(embedder, [sound, 3 * sound])
    assert embeds.shape == (2, 7, DIM)
    np.testing.assert_allclose(embeds[0], embeds[1], rtol=1e-3, atol=1e-3)
    levelled = (sound - sound.mean()) * LEVEL / sound.std()
    second = rows @ levelled[7680 : 7680 + WINDOW]
    np.testing.assert_allclose(embeds[0, 1], second, rtol=1e-3, atol=1e-2)


def test_yamnet_fills_a_short_sound_with_silence(network):
    from evaluation.embedders.yamnet import YamNet

    embedder = YamNet(network[0], dim=DIM)
    assert embedder.embed([np.ones(800, np.float32)]).shape == (1, 1, DIM)
    assert isinstance(embedder, JudgingEmbedder)


def test_yamnet_names_what_is_wrong_with_its_file(network, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is no file"):
        load_embedder(f"yamnet:{tmp_path / 'none'}", None)
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no network")
    with pytest.raises(ValueError, match="not a TFLite network"):
        load_embedder(f"yamnet:{broken}", None)
    with pytest.raises(ValueError, match="tensors of 1024 values"):
        load_embedder(f"yamnet:{network[0]}", None)
    imported = builtins.__import__

    def without_runtime(name, *rest):
        if name.startswith("ai_edge_litert"):
            raise ModuleNotFoundError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_runtime)
    with pytest.raises(ValueError, match=r"clipsynth\[yamnet\]"):
        load_embedder(f"yamnet:{network[0]}", None)


def test_a_linear_judge_learns_classes_and_gives_probabilities():
    rng = np.random.default_rng(0)
    labels = ["a", "b", "c"] * 20
    centres = {"a": [3, 0, 0, 0], "b": [0, 3, 0, 0], "c": [0, 0, 3, 0]}
    embeds = np.stack([centres[k] + rng.standard_normal((5, 4)) for k in labels]).astype(np.float32)
    judge = LinearJudge(embeds[:30], labels[:30])
    found = judge.probabilities(embeds[30:])
    np.testing.assert_allclose(found.sum(1), 1)
    assert np.mean([judge.labels[i] == k for i, k in zip(found.argmax(1), labels[30:], strict=True)]) > 0.95
