import math

import pytest
import torch

from models.condition_encoder import Condition, ConditionEncoder

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


def test_scalars_may_stand_alone_or_be_absent_in_a_batch(encoder):
    both = encoder.encode([[], [condition()]], [{"pitch": 0.3}, {}])
    assert both.mask.tolist() == [[False, True], [True, False]]


def test_which_scalar_and_how_much_of_it_make_a_difference(encoder):
    tokens = [
        encoder.encode([[]], [told]).tokens[0, -1]
        for told in ({"pitch": 0.0}, {"pitch": 1.0}, {"brightness": 0.0}, {"brightness": 0.0, "pitch": 0.0})
    ]
    for i, a in enumerate(tokens):
        assert not any(torch.allclose(a, b) for b in tokens[i + 1 :])
    assert torch.allclose(tokens[3], tokens[0] + tokens[2])


def test_a_scalar_that_is_not_told_has_no_gradient(encoder):
    table = torch.tensor([[0.5, math.nan]])
    zeros = torch.zeros(1, 1)
    out = encoder(torch.zeros(1, 1, 8), zeros + 1, zeros, zeros.bool(), table)
    gradient = torch.autograd.grad(out.tokens.sum(), encoder.scalar_projection)[0]
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0


def test_an_unknown_scalar_is_refused(encoder):
    with pytest.raises(ValueError, match="'loudness', only brightness, pitch"):
        encoder.encode([[]], [{"loudness": 1.0}])
    with pytest.raises(ValueError, match="only none"):
        ConditionEncoder(embed_dim=8).encode([[]], [{"pitch": 1.0}])


def test_saved_and_loaded(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    again = ConditionEncoder.from_pretrained(tmp_path)
    assert torch.equal(
        again.encode([[]], [{"pitch": 0.3}]).tokens, encoder.encode([[]], [{"pitch": 0.3}]).tokens
    )
