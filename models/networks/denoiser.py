"""The denoiser: velocity of the rectified flow over mel frames, given time and conditions.

The 1-D diffusion transformer (Peebles & Xie 2023) of diffusers, with two changes: it standardises the mel,
and the order of the conditions has no effect in cross-attention. It knows nothing of noise schedules or
guidance.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from diffusers import LongCatAudioDiTTransformer, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.transformers.transformer_longcat_audio_dit import AudioDiTCrossAttnProcessor
from torch import nn

from models.networks.condition_encoder import ConditionTokens

Prediction = Literal["velocity", "data"]
# Smallest divisor 1 - t when a predicted clip becomes a velocity.
MIN_NOISE_SHARE = 0.05


class SetCrossAttention(AudioDiTCrossAttnProcessor):
    """Cross-attention to a set: no rotary embedding on either side, so places do not change the match."""

    def __call__(
        self, attn, hidden_states, encoder_hidden_states, post_attention_mask=None, attention_mask=None, **_
    ):

        # A row without conditions must attend somewhere. Its embedded tokens are zero, so it adds only a
        # bias.
        mask = attention_mask | ~attention_mask.any(-1, keepdim=True)
        return super().__call__(
            attn,
            hidden_states,
            encoder_hidden_states,
            post_attention_mask=post_attention_mask,
            attention_mask=mask,
        )


class Denoiser(ModelMixin, ConfigMixin):
    """v(x_t, t, conditions) with x_t = (1 - t) noise + t data, v = data - noise.

    Rectified flow (Liu et al. 2022, eq. 1).

    With `prediction` "data" the network predicts the clean clip x, and v = (x - x_t) / (1 - t): noise with
    more values per token than the network is wide need not pass through it (Li & He 2025, "Back to Basics",
    table 1).
    """

    @register_to_config
    def __init__(
        self,
        dim: int = 256,
        depth: int = 8,
        heads: int = 4,
        condition_dim: int = 384,
        n_mels: int = 64,
        frames_per_token: int = 4,
        dropout: float = 0.0,
        prediction: Prediction = "velocity",
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"`prediction` must be one of {get_args(Prediction)}, got {prediction!r}")
        self.mel_mean = nn.Buffer(torch.zeros(n_mels))
        self.mel_std = nn.Buffer(torch.ones(n_mels))
        self.transformer = LongCatAudioDiTTransformer(
            dit_dim=dim,
            dit_depth=depth,
            dit_heads=heads,
            dit_text_dim=condition_dim,
            latent_dim=n_mels * frames_per_token,
            dropout=dropout,
            text_conv=False,
            use_latent_condition=False,
        )

        # Processors are not saved, so the class sets them.
        for block in self.transformer.blocks:
            block.cross_attn.set_processor(SetCrossAttention())

    @property
    def token_dim(self) -> int:
        """C, values per token."""
        return int(self.config.n_mels * self.config.frames_per_token)

    def to_tokens(self, mel: torch.Tensor) -> torch.Tensor:
        """Return standardised tokens (B, F // frames_per_token, C) of a log-mel (B, F, n_mels).

        Frames after the last whole token are dropped.
        """
        length = mel.shape[1] // self.config.frames_per_token
        standardised = (mel[:, : length * self.config.frames_per_token] - self.mel_mean) / self.mel_std
        return standardised.reshape(len(mel), length, self.token_dim)

    def to_mel(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the log-mel (B, L * frames_per_token, n_mels) of tokens (B, L, C)."""
        frames = tokens.reshape(len(tokens), -1, self.config.n_mels)
        return frames * self.mel_std + self.mel_mean

    def forward(
        self,
        tokens: torch.Tensor,
        t: torch.Tensor,
        conditions: ConditionTokens,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the velocity (B, L, C).

        Args:
            tokens: noisy tokens (B, L, C).
            t: time of each row (B,), 0 is noise and 1 is data.
            conditions: tokens of each row.
            mask: boolean (B, L), True where a row has a token; None where all rows are full.
        """
        # The state of sampling is float32; only the network computes in its own precision.
        out: torch.Tensor = self.transformer(
            hidden_states=tokens.to(self.dtype),
            encoder_hidden_states=conditions.tokens.to(self.dtype),
            encoder_attention_mask=conditions.mask,
            timestep=t,
            attention_mask=mask,
        ).sample
        out = out.to(tokens.dtype)
        if self.config.prediction == "velocity":
            return out
        return (out - tokens) / (1 - t).clamp(min=MIN_NOISE_SHARE)[:, None, None]
