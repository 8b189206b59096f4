import math

import pytest
import torch

from models.networks.condition_encoder import Condition, ConditionEncoder

SCALARS = ("brightness", "pitch")


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return ConditionEncoder(embed_dim=8, scalars=SCALARS)


def condition():
    return Condition(torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0), "image")


def test_scalars_are_one_more_token(encoder):
    plain = encoder.encode([[condition()]])
    told = encoder.encode([[condition()]], [{"pitch": 0.3}])
    assert plain.tokens.shape == (1, 1, 8)
    assert told.tokens.shape == (1, 2, 8)
    assert torch.equal(told.tokens[:, :1], plain.tokens)
    assert told.mask.tolist() == [[True, True]]


def test_scalars_may_be_alone_or_absent_in_a_batch(encoder):
    both = encoder.encode([[], [condition()]], [{"pitch": 0.3}, {}])
    assert both.mask.tolist() == [[False, True], [True, False]]


def test_scalar_name_and_value_change_the_token(encoder):
    tokens = [
        encoder.encode([[]], [told]).tokens[0, -1]
        for told in ({"pitch": 0.0}, {"pitch": 1.0}, {"brightness": 0.0}, {"brightness": 0.0, "pitch": 0.0})
    ]
    for i, a in enumerate(tokens):
        assert not any(torch.allclose(a, b) for b in tokens[i + 1 :])
    assert torch.allclose(tokens[3], tokens[0] + tokens[2])


def test_a_missing_scalar_has_no_gradient(encoder):
    table = torch.tensor([[0.5, math.nan]])
    zeros = torch.zeros(1, 1)
    out = encoder(torch.zeros(1, 1, 8), zeros + 1, zeros, zeros.bool(), table)
    gradient = torch.autograd.grad(out.tokens.sum(), encoder.scalar_projection)[0]
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0


def test_an_unknown_scalar_is_rejected(encoder):
    with pytest.raises(ValueError, match="'loudness', only brightness, pitch"):
        encoder.encode([[]], [{"loudness": 1.0}])
    with pytest.raises(ValueError, match="only none"):
        ConditionEncoder(embed_dim=8).encode([[]], [{"pitch": 1.0}])


def test_a_loaded_encoder_gives_the_same_tokens(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    again = ConditionEncoder.from_pretrained(tmp_path)
    assert torch.equal(
        again.encode([[]], [{"pitch": 0.3}]).tokens, encoder.encode([[]], [{"pitch": 0.3}]).tokens
    )


def text(encoder, **settings):
    """A text as the settings make it of one embedding, with means that differ."""
    encoder.means.copy_(torch.eye(2, 8))
    return encoder.changed(**settings).centre(torch.arange(1.0, 9.0)[None] / 10, "text")


def test_a_text_is_centred_or_moved_or_used_as_an_image(encoder):
    x, (image, own) = torch.arange(1.0, 9.0)[None] / 10, torch.eye(2, 8)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(text(encoder), unit(x - own))
    torch.testing.assert_close(text(encoder, text_centring="image"), unit(x - image))
    torch.testing.assert_close(text(encoder, text_centring="shift"), unit(unit(x + image - own) - image))
    torch.testing.assert_close(encoder.changed(text_centring="shift").centre(x, "image"), unit(x - image))
    with pytest.raises(ValueError, match="own"):
        encoder.changed(text_centring="none")


def test_a_prior_leads_texts_and_no_images(encoder):
    with_prior = encoder.changed(prior_dim=4)
    x = torch.arange(1.0, 9.0)[None]
    assert not torch.allclose(with_prior.centre(x, "text"), encoder.centre(x, "text"))
    assert torch.equal(with_prior.centre(x, "image"), encoder.centre(x, "image"))
    assert torch.equal(with_prior.changed(prior_share=0.0).centre(x, "text"), encoder.centre(x, "text"))


def test_a_changed_copy_keeps_weights_and_leaves_the_original(encoder):
    other = encoder.changed(text_sigma=0.1, prior_dim=4)
    assert (other.config.text_sigma, encoder.config.text_sigma) == (0.1, 0.5)
    for name, weight in encoder.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name
    again = other.changed(prior_dim=0)
    assert not hasattr(again, "prior")
    other.means.add_(1)
    assert not torch.equal(other.means, encoder.means)
