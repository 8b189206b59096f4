"""The precision follows the hardware; only the denoiser's network changes."""

import pytest
import torch

from models.conditioning.prompts import as_set
from models.networks.precision import choose_precision, has_bf16_products, set_precision
from models.sampler import SamplerRow, advance
from tests.support.tiny import build_tiny_pipeline

CPU = torch.device("cpu")


@pytest.fixture(params=["amx_tile", "avx512_bf16"])
def bf16_cpu(request, monkeypatch):
    """Report a CPU that multiplies bf16 matrices, with matrix units or with vectors."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda has=name == request.param: has)
    return request.param


def test_auto_is_bfloat16_where_the_cpu_multiplies_it(bf16_cpu, monkeypatch):
    assert choose_precision(CPU)[0] == torch.bfloat16
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert has_bf16_products() == (bf16_cpu == "avx512_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert choose_precision(CPU) == (torch.float32, "a CPU that multiplies bf16 matrices: no")
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
