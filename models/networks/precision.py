"""Choose the precision of the denoiser by the processor, and set it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from models.pipeline import ClipSynthPipeline

Precision = Literal["auto", "float32", "bfloat16"]


def has_bf16_products() -> bool:
    """Return whether the CPU multiplies bf16 matrices (AMX, AVX512-BF16) and oneDNN may use it."""
    amx, avx = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit not in ("", "DEFAULT", "ALL"):
        amx, avx = amx and "AMX" in limit, avx and any(name in limit for name in ("BF16", "FP16", "AMX"))
    return bool((amx or avx) and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_precision(device: torch.device, wanted: Precision = "auto") -> tuple[torch.dtype, str]:
    """Return the dtype of the denoiser on a device, and the reason.

    "auto" depends on the hardware alone, never on a time measured at start. So a seed gives one sound in all
    workers on the same hardware, also after a restart.

    Raises:
        ValueError: the device does not compute in bfloat16.
    """
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        reason = f"a CUDA device that computes in bf16: {'yes' if bf16 else 'no'}"
    elif device.type == "cpu":
        bf16 = has_bf16_products()
        reason = f"a CPU that multiplies bf16 matrices: {'yes' if bf16 else 'no'}"
    else:
        bf16, reason = False, "half precision garbles sound on Apple's GPU"
    if wanted == "auto":
        return (torch.bfloat16 if bf16 else torch.float32), reason
    if wanted == "bfloat16" and device.type not in ("cpu", "cuda"):
        raise ValueError(f"precision bfloat16: {reason}; choose auto or float32")
    return getattr(torch, wanted), "asked for"


def set_precision(pipeline: ClipSynthPipeline, dtype: torch.dtype) -> ClipSynthPipeline:
    """Convert the denoiser's network in place; all other parts and the sampler's state stay in float32."""
    nn.Module.to(pipeline.denoiser.transformer, dtype)
    return pipeline


def fastest_precision(pipeline: ClipSynthPipeline) -> ClipSynthPipeline:
    """Convert a pipeline, in place, to the precision that a worker would choose on its device."""
    return set_precision(pipeline, choose_precision(pipeline.denoiser.device)[0])
