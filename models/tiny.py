"""A whole pipeline at toy size: the true classes with random weights, for tests and smoke runs. Makes noise, not sounds."""

from __future__ import annotations

import torch

from models.condition_encoder import ConditionEncoder
from models.denoiser import Denoiser
from models.encoders import JointEncoder, PackagedEncoder
from models.manifest import Manifest
from models.mel import MelSpectrogram
from models.pipeline import ClipSynthPipeline
from models.vocoder import build_vocoder


def build_tiny_pipeline(seed: int = 0, *, encoder: JointEncoder | None = None) -> ClipSynthPipeline:
    """Return a pipeline that runs in well under a second for a short sound; `encoder` defaults to the packaged one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = PackagedEncoder() if encoder is None else encoder
        mel = MelSpectrogram()
        condition_encoder = ConditionEncoder(embed_dim=encoder.embed_dim)
        denoiser = Denoiser(dim=32, depth=2, heads=2, condition_dim=encoder.embed_dim)
        # Zero-initialised output layers would hide every input from the tests.
        for layer in (
            denoiser.transformer.proj_out,
            denoiser.transformer.adaln_global_mlp.mlp[-1],
            denoiser.transformer.norm_out.linear,
        ):
            torch.nn.init.normal_(layer.weight, std=0.1)
        vocoder = build_vocoder(mel, upsample_initial_channel=32)
        for weight in (
            p for p in vocoder.parameters() if p.ndim == 3
        ):  # as initialised, the generator is silent
            torch.nn.init.kaiming_normal_(weight)
    pipe = ClipSynthPipeline(encoder, condition_encoder, denoiser.eval(), vocoder.eval(), mel)
    pipe.manifest = Manifest(name="tiny", min_duration_s=0.5, max_duration_s=5.0)
    return pipe
