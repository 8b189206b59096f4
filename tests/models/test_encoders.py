import torch

from models.encoders import JointEncoder, PackagedEncoder


def test_the_anchors_beside_the_module_are_those_of_the_installed_weights():
    encoder = PackagedEncoder()
    computed = JointEncoder.class_anchors.func(encoder)
    torch.testing.assert_close(encoder.class_anchors, computed, atol=1e-4, rtol=0)


def test_anchors_of_other_weights_are_computed(monkeypatch):
    encoder = PackagedEncoder()
    monkeypatch.setattr(PackagedEncoder, "encode_text", lambda _, texts: torch.ones(len(texts), 384))
    encoder.register_to_config(sha256=dict.fromkeys(encoder.PACKAGES, "other"))
    assert encoder.class_anchors.shape == (1000, 384)
    assert encoder.class_anchors.min() == 1
