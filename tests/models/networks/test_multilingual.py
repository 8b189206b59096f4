import pytest
import torch
from PIL import Image

from models.networks.load_encoder import load_encoder
from models.networks.multilingual import MultilingualEncoder, without_emoji


@pytest.fixture(scope="module")
def encoder():
    return MultilingualEncoder()


def test_a_text_does_not_depend_on_its_batch(encoder):
    alone = encoder.encode_text(["a dog"])
    together = encoder.encode_text(["a longer text about the sea", "a dog"])
    assert torch.equal(alone[0], together[1])
    assert alone.shape == (1, encoder.embed_dim) == (1, 512)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(2))


def test_other_languages_lie_near_english(encoder):
    english = encoder.encode_text(["a dog", "a piano", "heavy rain"])
    others = encoder.encode_text(["ein Hund", "un piano", "сильный дождь"])
    assert (others @ english.T).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("🐕 in the 🌧️", "dog in the cloud with rain"),
        ("no_emoji here", "no_emoji here"),
        ("🎹", "musical keyboard"),
    ],
)
def test_emoji_are_read_by_their_names(text, plain, encoder):
    assert without_emoji(text) == plain
    assert torch.equal(encoder.encode_text([text]), encoder.encode_text([plain]))


def test_images_have_unit_norm_and_differ(encoder):
    images = [Image.new("RGB", (300, 200), color) for color in ("red", "navy")]
    embeds = encoder.encode_image(images)
    assert embeds.shape == (2, 512)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(embeds[1:], encoder.encode_image(images[1:]), atol=1e-5, rtol=1e-4)
    assert embeds[0] @ embeds[1] < 0.999


def test_it_is_saved_loaded_and_checked(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, MultilingualEncoder)
    assert torch.equal(loaded.encode_text(["rain"]), encoder.encode_text(["rain"]))
    with pytest.raises(ValueError, match="photo_head are not those of this bundle"):
        MultilingualEncoder(sha256={"photo_head": "0"})
