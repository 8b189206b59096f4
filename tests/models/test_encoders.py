import torch
from safetensors.torch import load_file

from models.class_names import class_names, synonyms
from models.encoders import JointEncoder, PackagedEncoder


def test_the_anchors_beside_the_module_are_those_of_the_installed_weights():
    encoder = PackagedEncoder()
    computed = JointEncoder.class_anchors.func(encoder)
    torch.testing.assert_close(encoder.class_anchors, computed, atol=1e-4, rtol=0)
    names, classes = JointEncoder.name_anchors.func(encoder)
    torch.testing.assert_close(encoder.name_anchors[0], names, atol=1e-4, rtol=0)
    assert torch.equal(encoder.name_anchors[1], classes)


def test_anchors_of_other_weights_are_computed(monkeypatch):
    encoder = PackagedEncoder()
    monkeypatch.setattr(PackagedEncoder, "encode_text", lambda _, texts: torch.ones(len(texts), 384))
    encoder.register_to_config(sha256=dict.fromkeys(encoder.PACKAGES, "other"))
    assert encoder.class_anchors.shape == (1000, 384)
    assert encoder.class_anchors.min() == 1
    names, classes = encoder.name_anchors
    assert names.min() == 1
    assert len(names) == len(classes) > 1000


def test_a_text_is_brought_to_the_class_of_any_of_its_names(tmp_path):
    encoder = PackagedEncoder()
    texts = encoder.encode_text(["someone playing the xylophone", "a flute melody"])
    made = encoder.among_classes(texts, 0.01)
    nearest = (made @ encoder.class_anchors.T).argmax(-1).tolist()
    assert [class_names()[n] for n in nearest] == ["marimba", "flute"]
    assert "xylophone" in synonyms()[class_names().index("marimba")]
    encoder.keep_anchors(tmp_path / "anchors")
    assert load_file(tmp_path / "anchors")["anchors"].shape == (1000, 384)
