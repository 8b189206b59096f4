import pytest
import torch

from models.networks.condition_encoder import ConditionTokens
from models.networks.denoiser import Denoiser


def test_the_velocity_leads_to_the_predicted_clip():
    torch.manual_seed(0)
    denoiser = Denoiser(dim=32, depth=1, heads=2, condition_dim=8, prediction="data").eval()
    torch.nn.init.normal_(denoiser.transformer.proj_out.weight, std=0.1)
    tokens, t = torch.randn(2, 5, 256), torch.tensor([0.2, 0.9])
    conditions = ConditionTokens(torch.randn(2, 1, 8), torch.ones(2, 1, dtype=torch.bool))
    with torch.no_grad():
        velocity = denoiser(tokens, t, conditions)
        clip = denoiser.transformer(
            hidden_states=tokens,
            encoder_hidden_states=conditions.tokens,
            encoder_attention_mask=conditions.mask,
            timestep=t,
            attention_mask=None,
        ).sample
    torch.testing.assert_close(tokens + (1 - t)[:, None, None] * velocity, clip, atol=1e-5, rtol=0)
    assert denoiser(tokens, torch.ones(2), conditions).isfinite().all()


def test_an_unknown_prediction_is_rejected():
    with pytest.raises(ValueError, match="noise"):
        Denoiser(dim=32, depth=1, heads=2, condition_dim=8, prediction="noise")
