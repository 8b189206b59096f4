import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from models.networks.multilingual import FEATURES, PhotoHead
from training.photo_head import (
    crops,
    read_photos,
    texts_of,
    train_head,
    write_head,
)


def test_names_are_mended_and_get_general_words():
    maracas, terrier = texts_of(["marakas", "Airedale"])
    assert maracas == ["maracas", "a maracas", "a photo of a maracas", "the sound of a maracas"]
    assert {"Airedale", "a photo of a Airedale terrier", "a dog"} <= set(terrier)
    assert not any("maraka" in text for text in maracas)


def test_the_head_learns_names_from_features(tmp_path):
    g = torch.Generator().manual_seed(0)
    texts = [F.normalize(torch.randn(2, 16, generator=g), dim=-1) for _ in range(3)]
    centres = torch.randn(3, FEATURES, generator=g)
    names = torch.arange(3).repeat(10)
    features = centres[names][:, None] + 0.1 * torch.randn(30, 2, FEATURES, generator=g)
    head = train_head(features, names, texts, steps=60, batch_size=16, hidden=32)
    means = torch.stack([t.mean(0) for t in texts])
    assert (head(features[:, 0]) @ means.T).argmax(1).tolist() == names.tolist()
    write_head(head, tmp_path / "head.safetensors")
    again = PhotoHead(32, 16)
    again.load_state_dict(load_file(tmp_path / "head.safetensors"))
    torch.testing.assert_close(again.eval()(features[:, 0]), head(features[:, 0]), atol=1e-2, rtol=1e-2)


def test_crops_are_squares_of_the_image():
    image = Image.new("L", (40, 30))
    whole, *rest = crops(image, 4, np.random.default_rng(0))
    assert whole.size == (40, 30)
    assert all(c.size[0] == c.size[1] and 18 <= c.size[0] <= 30 for c in rest)


def test_a_folder_without_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no"):
        read_photos(tmp_path)
    (tmp_path / "manifest.csv").write_text("file\na.jpg\n")
    with pytest.raises(ValueError, match="columns file and name"):
        read_photos(tmp_path)
