"""The codec of SpecVQGAN: a VQ-GAN from a log-mel to codes and back (Iashin & Rahtu 2021, 3.1).

A code stands for `bins_per_code` mel bands by `frames_per_code` frames. Half of that reduction stacks small
patches of the mel as channels, half is strides of the network: a full-size convolution costs 30 times as
much, too much for a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ModelMixin, VQModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn


class MelCodec(ModelMixin, ConfigMixin):
    """A mel to codes and back.

    Codes are in column-major order: all bands of the first `frames_per_code` frames, lowest first, then the
    next.
    """

    @register_to_config
    def __init__(
        self,
        codebook_size: int = 512,
        code_dim: int = 16,
        channels: Sequence[int] = (96, 128),
        n_mels: int = 64,
        bins_per_code: int = 8,
        frames_per_code: int = 16,
    ) -> None:
        """Build an untrained codec.

        Args:
            code_dim: values of an entry of the codebook; few, so that all entries are used (Yu et al. 2022,
                3.1).
            channels: of the network's levels; each level halves height and length.

        Raises:
            ValueError: `bins_per_code` or `frames_per_code` is no multiple of the network's stride, or
                `n_mels` is no multiple of `bins_per_code`.
        """
        super().__init__()
        stride = 2 ** (len(channels) - 1)
        if bins_per_code % stride or frames_per_code % stride or n_mels % bins_per_code:
            raise ValueError(
                f"`bins_per_code` and `frames_per_code` must be multiples of {stride}, "
                f"and `n_mels` of `bins_per_code`, got {bins_per_code}, {frames_per_code} and {n_mels}"
            )
        self.patch = (bins_per_code // stride, frames_per_code // stride)
        values = self.patch[0] * self.patch[1]
        self.vqgan = VQModel(
            in_channels=values,
            out_channels=values,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=tuple(channels),
            layers_per_block=1,
            norm_num_groups=min(32, min(channels) // 2),
            latent_channels=channels[0],
            num_vq_embeddings=codebook_size,
            vq_embed_dim=code_dim,
        )
        self.mel_mean = nn.Buffer(torch.zeros(n_mels))
        self.mel_std = nn.Buffer(torch.ones(n_mels))

    @property
    def codes_per_column(self) -> int:
        """Codes for one stretch of `frames_per_code` frames."""
        return int(self.config.n_mels // self.config.bins_per_code)

    def to_patches(self, mel: torch.Tensor) -> torch.Tensor:
        """Return standardised patches (B, C, M', F') of a log-mel (B, F, n_mels).

        Frames after the last whole code are dropped.
        """
        frames = mel.shape[1] // self.config.frames_per_code * self.config.frames_per_code
        image = ((mel[:, :frames] - self.mel_mean) / self.mel_std).transpose(1, 2)  # (B, M, F)
        bins, steps = self.patch
        grid = image.unflatten(2, (-1, steps)).unflatten(1, (-1, bins))  # (B, M', bins, F', steps)
        return grid.permute(0, 2, 4, 1, 3).flatten(1, 2)

    def to_mel(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the log-mel (B, F, n_mels) of standardised patches (B, C, M', F')."""
        grid = patches.unflatten(1, self.patch).permute(0, 4, 2, 3, 1)  # (B, F', steps, M', bins)
        return grid.flatten(3, 4).flatten(1, 2) * self.mel_std + self.mel_mean

    def latents(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the latents before quantisation (B, code_dim, rows, columns)."""
        latents: torch.Tensor = self.vqgan.encode(patches).latents
        return latents

    def encode(self, mel: torch.Tensor) -> torch.Tensor:
        """Return codes (B, L) of a log-mel (B, F, n_mels), L = codes_per_column * (F // frames_per_code)."""
        latents = self.latents(self.to_patches(mel)).float()
        _, _, (_, _, codes) = self.vqgan.quantize(latents)
        return codes.view(len(mel), *latents.shape[2:]).transpose(1, 2).flatten(1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the log-mel (B, F, n_mels) of whole columns of codes (B, L)."""
        rows = codes.view(len(codes), -1, self.codes_per_column).transpose(1, 2)
        entries = self.vqgan.quantize.embedding(rows).permute(0, 3, 1, 2)
        return self.to_mel(self.vqgan.decode(entries, force_not_quantize=True).sample)

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return patches (B, C, M', F'), their reconstruction, the quantiser's loss, and latents.

        The latents (N, code_dim) are those before quantisation.
        """
        patches = self.to_patches(mel)
        latents = self.latents(patches).float()
        quantised, loss, _ = self.vqgan.quantize(latents)
        made = self.vqgan.decode(quantised, force_not_quantize=True).sample
        return patches, made.float(), loss, latents.detach().permute(0, 2, 3, 1).flatten(0, 2)
