"""What a sound costs to sample on this machine: a bundle of ours against the published shapes of SpecVQGAN and AudioLDM-S, with random weights.

Shapes: SpecVQGAN's configs/vggsound_transformer.yaml and vggsound_codebook.yaml (github.com/v-iashin/SpecVQGAN): 53 x 5 codes of 1,024 for 9.85 s, 24 layers, 16 heads, width
1,024, one frame's features before the codes. AudioLDM-S: audioldm_original.yaml (github.com/haoheliu/AudioLDM-training-finetuning): channels 128 x (1, 2, 3, 5), two blocks a level,
attention on the lower three, latent of 8 x 256 x 16 for 10.24 s, 200 DDIM steps with guidance.

Run: OMP_WAIT_POLICY=PASSIVE PYTHONPATH=. python benchmarks/sampling_cost.py checkpoints/demo
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel, VQModel
from diffusers.utils.logging import disable_progress_bar
from torch import nn

from models import ClipSynthPipeline
from models.baselines.code_transformer import CodeTransformer

SPECVQGAN_COLUMNS, SPECVQGAN_ROWS = 53, 5
SPECVQGAN_S = SPECVQGAN_COLUMNS * 16 * 256 / 22050  # 16 frames a column, hop 256 at 22,050 Hz
AUDIOLDM_STEPS, AUDIOLDM_S = 200, 10.24
CODES = SPECVQGAN_COLUMNS * SPECVQGAN_ROWS
ROUNDS = 3


def seconds(call: Callable[[], object]) -> float:
    """Return the time of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def millions(*modules: nn.Module) -> str:
    return f"{sum(p.numel() for m in modules for p in m.parameters()) / 1e6:.0f} M"


def specvqgan() -> tuple[CodeTransformer, VQModel]:
    """Return transformer and VQ-GAN of the published shape, random weights. Ours keeps keys and values, which the published code computes again for every code."""
    transformer = CodeTransformer(
        codebook_size=1024,
        max_codes=CODES,
        dim=1024,
        depth=24,
        heads=16,
        condition_dim=2048,
    )
    widths = (128, 128, 256, 256, 512)
    vqgan = VQModel(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=256,
        num_vq_embeddings=1024,
    )
    return transformer.eval(), vqgan.eval()


def audioldm() -> UNet2DConditionModel:
    """Return the U-Net of AudioLDM-S, random weights; the text's vector is its class embedding, and attention is to itself."""
    widths = (128, 256, 384, 640)
    return UNet2DConditionModel(
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        block_out_channels=widths,
        layers_per_block=2,
        attention_head_dim=tuple(width // 32 for width in widths),
        cross_attention_dim=widths,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=512,
        class_embeddings_concat=True,
    ).eval()


@dataclass
class Cost:
    """One row of the table; `call` does `1 / share` of the work for `sound_s` seconds of sound."""

    system: str
    parameters: str
    sound_s: float
    call: Callable[[], object]
    note: str
    share: int = 1
    fastest_s: float = math.inf

    def measure(self) -> None:
        self.fastest_s = min(self.fastest_s, seconds(self.call) * self.share)


def cost_of_bundle(pipe: ClipSynthPipeline) -> Cost:
    m = pipe.manifest
    parameters = millions(pipe.condition_encoder, pipe.denoiser, pipe.vocoder)
    note = f"{m.num_inference_steps} steps, guidance {m.guidance_scale:g}; encoder and vocoder included"
    return Cost(f"CLIPSynth, bundle {m.name}", parameters, m.duration_s, lambda: pipe("a dog barking"), note)


def cost_of_specvqgan() -> Cost:
    transformer, vqgan = specvqgan()

    def sample() -> None:
        transformer.sample(
            torch.zeros(1, 2048), CODES, top_k=100, temperature=1.0, generators=[torch.Generator()]
        )
        vqgan.decode(torch.randn(1, 256, SPECVQGAN_ROWS, SPECVQGAN_COLUMNS), force_not_quantize=True)

    note = f"{CODES} codes, keys and values kept; to the mel, no vocoder"
    return Cost("SpecVQGAN", millions(transformer, vqgan), SPECVQGAN_S, sample, note)


def cost_of_audioldm() -> Cost:
    unet = audioldm()
    latents, vector = torch.randn(2, 8, 256, 16), torch.randn(2, 512)  # conditional and unconditional

    def step() -> None:
        unet(latents, 500, encoder_hidden_states=None, class_labels=vector)

    note = f"{AUDIOLDM_STEPS} times the fastest of {ROUNDS} steps; U-Net alone"
    return Cost("AudioLDM-S", millions(unet), AUDIOLDM_S, step, note, share=AUDIOLDM_STEPS)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    disable_progress_bar()
    pipe = ClipSynthPipeline.from_pretrained(parser.parse_args().bundle)
    pipe.set_progress_bar_config(disable=True)
    ours, *others = costs = (cost_of_bundle(pipe), cost_of_specvqgan(), cost_of_audioldm())
    pipe("a dog barking")  # loads the text encoder
    for _ in range(ROUNDS):  # in turns, so that what else the machine does meets all alike
        for cost in costs:
            cost.measure()
    print(f"{torch.get_num_threads()} threads, fp32, one sound at a time, fastest of {ROUNDS}\n")
    print("| system | parameters | s of sound | s to sample | per s of sound | × ours per s of sound | |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for cost in (ours, *others):
        per_s = cost.fastest_s / cost.sound_s
        ratio = per_s / (ours.fastest_s / ours.sound_s)
        print(
            f"| {cost.system} | {cost.parameters} | {cost.sound_s:.2f} | {cost.fastest_s:.2f} | {per_s:.2f} | {ratio:.1f} | {cost.note} |"
        )


if __name__ == "__main__":
    main()
