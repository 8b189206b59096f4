"""Time a bundle beside the shapes of SpecVQGAN and AudioLDM-S with random weights.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.model.sampling_cost checkpoints/demo

SpecVQGAN (github.com/v-iashin/SpecVQGAN, its vggsound configurations): 53 x 5 codes of
1,024 for 9.85 s, 24 layers, 16 heads, width 1,024, one frame's features before the codes. AudioLDM-S
(github.com/haoheliu/AudioLDM-training-finetuning, audioldm_original.yaml): channels 128 x (1, 2, 3, 5), two
blocks a level, attention on the lower three, latent 8 x 256 x 16 for 10.24 s, 200 DDIM steps with guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from timeit import timeit
from typing import NamedTuple

import torch
import typer
from diffusers import UNet2DConditionModel, VQModel
from diffusers.utils.logging import disable_progress_bar
from torch import nn

from models import ClipSynthPipeline
from models.baselines.code_transformer import CodeTransformer

SPECVQGAN_COLUMNS, SPECVQGAN_ROWS = 53, 5
# 16 frames a column, hop 256 at 22,050 Hz
SPECVQGAN_S = SPECVQGAN_COLUMNS * 16 * 256 / 22050
AUDIOLDM_STEPS, AUDIOLDM_S = 200, 10.24
CODES = SPECVQGAN_COLUMNS * SPECVQGAN_ROWS
ROUNDS = 3


def specvqgan() -> tuple[CodeTransformer, VQModel]:
    """Return transformer and VQ-GAN of the published shape.

    Ours keeps keys and values; the published code computes them again for every code.
    """
    sizes = {"codebook_size": 1024, "max_codes": CODES, "dim": 1024, "depth": 24, "heads": 16}
    transformer = CodeTransformer(**sizes, condition_dim=2048)
    widths = (128, 128, 256, 256, 512)
    blocks = ("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(widths)
    vqgan = VQModel(1, 1, *blocks, widths, 2, latent_channels=256, num_vq_embeddings=1024)
    return transformer.eval(), vqgan.eval()


def audioldm() -> UNet2DConditionModel:
    """Return the U-Net of AudioLDM-S; the text's vector is its class embedding, attention is to itself."""
    widths = (128, 256, 384, 640)
    text = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 512}
    return UNet2DConditionModel(
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        block_out_channels=widths,
        attention_head_dim=tuple(width // 32 for width in widths),
        cross_attention_dim=widths,
        class_embeddings_concat=True,
        **text,
    ).eval()


class SamplingCost(NamedTuple):
    """One row of the table; `call` does `1 / share` of the work for `sound_s` seconds of sound."""

    system: str
    modules: Sequence[nn.Module]
    sound_s: float
    call: Callable[[], object]
    note: str
    share: int = 1


def cost_of_bundle(pipe: ClipSynthPipeline) -> SamplingCost:
    m, modules = pipe.manifest, (pipe.condition_encoder, pipe.denoiser, pipe.vocoder)
    note = f"{m.num_inference_steps} steps, guidance {m.guidance_scale:g}; encoder and vocoder included"
    return SamplingCost(f"CLIPSynth, {m.name}", modules, m.duration_s, lambda: pipe("a dog barking"), note)


def cost_of_specvqgan() -> SamplingCost:
    transformer, vqgan = specvqgan()

    def sample() -> None:
        choice = {"top_k": 100, "temperature": 1.0, "generators": [torch.Generator()]}
        transformer.sample(torch.zeros(1, 2048), CODES, **choice)
        vqgan.decode(torch.randn(1, 256, SPECVQGAN_ROWS, SPECVQGAN_COLUMNS), force_not_quantize=True)

    note = f"{CODES} codes, keys and values kept; to the mel, no vocoder"
    return SamplingCost("SpecVQGAN", (transformer, vqgan), SPECVQGAN_S, sample, note)


def cost_of_audioldm() -> SamplingCost:
    unet = audioldm()
    # conditional and unconditional
    latents, vector = torch.randn(2, 8, 256, 16), torch.randn(2, 512)

    def step() -> None:
        unet(latents, 500, encoder_hidden_states=None, class_labels=vector)

    note = f"{AUDIOLDM_STEPS} times the fastest of {ROUNDS} steps; U-Net alone"
    return SamplingCost("AudioLDM-S", (unet,), AUDIOLDM_S, step, note, share=AUDIOLDM_STEPS)


@torch.inference_mode()
def main(bundle: Path) -> None:
    """Print a table of sampling costs of a bundle and of published shapes."""
    disable_progress_bar()
    pipe = ClipSynthPipeline.from_pretrained(bundle)
    pipe.set_progress_bar_config(disable=True)
    costs = (cost_of_bundle(pipe), cost_of_specvqgan(), cost_of_audioldm())
    # load the text encoder
    pipe("a dog barking")
    # in turns, so that other work on the machine affects all systems equally
    rounds = [
        [timeit(cost.call, number=1) * cost.share / cost.sound_s for cost in costs] for _ in range(ROUNDS)
    ]
    fastest = [min(column) for column in zip(*rounds, strict=True)]
    print(f"{torch.get_num_threads()} threads, fp32, one sound at a time, fastest of {ROUNDS}\n")
    print("| system | parameters | s of sound | s to sample | per s of sound | × ours per s of sound | |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for cost, per_s in zip(costs, fastest, strict=True):
        millions = sum(p.numel() for module in cost.modules for p in module.parameters()) / 1e6
        figures = f"{cost.sound_s:.2f} | {per_s * cost.sound_s:.2f} | {per_s:.2f} | {per_s / fastest[0]:.1f}"
        print(f"| {cost.system} | {millions:.0f} M | {figures} | {cost.note} |")


if __name__ == "__main__":
    typer.run(main)
