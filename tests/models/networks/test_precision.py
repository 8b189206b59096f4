"""The precision follows the hardware; only the denoiser's network changes."""

import pytest
import torch

from models.conditioning.prompts import as_set
from models.networks.precision import choose_precision, has_bf16_matrix_units, set_precision
from models.sampler import SamplerRow, advance
from tests.support.tiny import build_tiny_pipeline

CPU = torch.device("cpu")


@pytest.fixture
def amx(monkeypatch):
    """Report a CPU with AMX."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)


@pytest.mark.usefixtures("amx")
def test_auto_is_bfloat16_with_matrix_units(monkeypatch):
    assert choose_precision(CPU)[0] == torch.bfloat16
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not has_bf16_matrix_units()
    assert choose_precision(CPU) == (torch.float32, "a CPU with bf16 matrix units: no")


@pytest.mark.usefixtures("amx")
def test_avx512_bf16_alone_stays_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_precision(CPU)[0] == torch.float32
    assert choose_precision(CPU, "bfloat16") == (torch.bfloat16, "asked for")


def test_an_apple_gpu_refuses_bfloat16():
    assert choose_precision(torch.device("mps"))[0] == torch.float32
    with pytest.raises(ValueError, match="precision bfloat16"):
        choose_precision(torch.device("mps"), "bfloat16")


def rows(pipe, seeds) -> list[SamplerRow]:
    options = {"num_inference_steps": 4, "guidance_scale": 2.0, "duration_s": 1.0}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe.prepare_rows(as_set("a dog", None, None), generators=generators, **options)


@torch.inference_mode()
def latents(pipe, seeds) -> torch.Tensor:
    states = rows(pipe, seeds)
    while not states[0].done:
        advance(states, pipe.denoiser)
    return torch.cat([row.latents for row in states])


def test_bfloat16_stays_near_float32_alone_and_batched():
    pipe = build_tiny_pipeline()
    exact = latents(pipe, [1, 2, 3])
    assert set_precision(pipe, torch.bfloat16) is pipe
    assert pipe.denoiser.dtype == torch.bfloat16
    assert pipe.denoiser.mel_mean.dtype == pipe.vocoder.dtype == torch.float32
    batched, alone = latents(pipe, [1, 2, 3]), latents(pipe, [2])
    assert batched.dtype == torch.float32
    assert 0 < (batched - exact).abs().mean() < 0.02 * exact.abs().mean()
    assert (batched[1] - alone[0]).abs().max() < 0.05 * exact.abs().max()
    set_precision(pipe, torch.float32)
