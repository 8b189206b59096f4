"""A denoiser moves to another encoder without a change of what it says."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.networks.condition_encoder import Condition, ConditionEncoder
from models.networks.denoiser import Denoiser
from models.retrieval.clip_index import Index
from training.denoiser.adapt import adapt_to_encoder

N, OLD, NEW = 120, 16, 24


def clips_of(embeds: torch.Tensor) -> Any:
    index = [{"video": f"{n}.mp4", "start_s": 0.0} for n in range(len(embeds))]
    train = SimpleNamespace(index=index, embeds=lambda i: embeds[i][None])
    return cast(Any, SimpleNamespace(train=train, image_mean=embeds.mean(0), text_mean=embeds.mean(0)))


def parts_and_embeddings() -> tuple[ConditionEncoder, Denoiser, Index, torch.Tensor]:
    torch.manual_seed(0)
    embeds = F.normalize(torch.randn(N, OLD), dim=-1)
    other = embeds @ torch.linalg.qr(torch.randn(NEW, OLD)).Q.T
    encoder = ConditionEncoder(embed_dim=OLD, scalars=["pitch"], text_centring="image")
    encoder.means.copy_(embeds.mean(0).expand(2, -1))
    denoiser = Denoiser(dim=32, depth=1, heads=2, condition_dim=OLD, n_mels=4, frames_per_token=2)
    index = Index(embeds, [{"video": f"{n}.mp4", "start_s": 0.0} for n in range(N)])
    for weight in denoiser.parameters():
        nn.init.normal_(weight, std=0.3)
    return encoder.eval(), denoiser.eval(), index, other


@torch.inference_mode()
def test_an_adapted_denoiser_hears_the_same_conditions() -> None:
    encoder, denoiser, index, other = parts_and_embeddings()
    moved_encoder, moved = adapt_to_encoder(encoder, denoiser, index, clips_of(other))
    moved_encoder.eval()
    moved.eval()
    x, t = torch.randn(1, 5, 8), torch.tensor([0.5])
    for scalars in ([{}], [{"pitch": 0.7}]):
        before = denoiser(x, t, encoder.encode([[Condition(index.embeds[3], "image")]], scalars))
        after = moved(x, t, moved_encoder.encode([[Condition(other[3], "image", sigma=0.0)]], scalars))
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    unlike = moved(x, t, moved_encoder.encode([[Condition(other[4], "image")]], [{}]))
    assert not torch.allclose(unlike, before, atol=1e-3)


def test_too_few_shared_clips_cannot_adapt_a_denoiser() -> None:
    encoder, denoiser, index, other = parts_and_embeddings()
    with pytest.raises(ValueError, match="50 clips are in both"):
        adapt_to_encoder(encoder, denoiser, index, clips_of(other[:50]))
