"""A whole pipeline at toy size: the real classes with random weights, for tests.

It makes noise, not sounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.audio.attributes import CONDITIONS, GRID, NAMES
from models.audio.mel import MelSpectrogram
from models.audio.vocoder import build_vocoder
from models.bundle import Manifest
from models.networks.condition_encoder import GUIDANCE, ConditionEncoder
from models.networks.denoiser import Denoiser
from models.networks.encoder import JointEncoder
from models.networks.packaged import PackagedEncoder
from models.pipeline import ClipSynthPipeline

# Ranges as of training clips: dB of full scale; brightness and pitch are logarithms of Hz.
RANGES = {
    "loudness": (-40.0, -10.0),
    "brightness": (4.6, 9.0),
    "pitch": (4.6, 7.0),
    "noisiness": (0, 1),
    "density": (0, 10),
}


def build_tiny_pipeline(
    seed: int = 0,
    *,
    encoder: JointEncoder | None = None,
    scalars: Sequence[str] = CONDITIONS,
    guidance_scales: Sequence[float] = (),
) -> ClipSynthPipeline:
    """Return a pipeline that makes a short sound in less than a second and accepts all attributes.

    Args:
        encoder: the packaged encoder by default.
        scalars: conditioning scalars of the condition encoder.
        guidance_scales: lowest and highest guidance weight of distilled guidance; empty for none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = PackagedEncoder() if encoder is None else encoder
        mel = MelSpectrogram()
        condition_encoder = ConditionEncoder(
            embed_dim=encoder.embed_dim,
            scalars=[*scalars, *([GUIDANCE] if guidance_scales else [])],
            guidance_scales=list(guidance_scales),
        )
        denoiser = Denoiser(dim=32, depth=2, heads=2, condition_dim=encoder.embed_dim)
        # Zero-initialised output layers would hide every input from the tests.
        for layer in (
            denoiser.transformer.proj_out,
            denoiser.transformer.adaln_global_mlp.mlp[-1],
            denoiser.transformer.norm_out.linear,
        ):
            torch.nn.init.normal_(layer.weight, std=0.1)
        vocoder = build_vocoder(mel, upsample_initial_channel=32)

        # As initialised, the generator is silent.
        for weight in (p for p in vocoder.parameters() if p.ndim == 3):
            torch.nn.init.kaiming_normal_(weight)
    pipe = ClipSynthPipeline(encoder, condition_encoder, denoiser.eval(), vocoder.eval(), mel)
    grids = {name: np.linspace(*RANGES[name], GRID).tolist() for name in NAMES}
    pipe.manifest = Manifest(name="tiny", min_duration_s=0.5, max_duration_s=5.0, attributes=grids)
    return pipe
