"""The transformer of SpecVQGAN (Iashin & Rahtu 2021, 3.2): predicts codes in order, from a condition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel


class CodeTransformer(ModelMixin, ConfigMixin):
    """p(code l | condition, codes before l) with GPT-2; the condition comes before the first code."""

    @register_to_config
    def __init__(
        self,
        codebook_size: int = 512,
        max_codes: int = 200,
        dim: int = 256,
        depth: int = 6,
        heads: int = 4,
        dropout: float = 0.1,
        condition_dim: int = 384,
    ) -> None:
        super().__init__()
        self.prime = nn.Linear(condition_dim, dim)
        self.gpt = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=codebook_size,
                n_positions=max_codes,
                n_embd=dim,
                n_layer=depth,
                n_head=heads,
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                attn_pdrop=dropout,
                bos_token_id=None,
                eos_token_id=None,
                tie_word_embeddings=False,  # safetensors keeps no shared tensors
            )
        )

    def forward(self, conditions: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, L, codebook_size) of codes (B, L), for conditions (B, condition_dim)."""
        before = self.gpt.transformer.wte(codes[:, :-1])
        inputs = torch.cat([self.prime(conditions)[:, None], before], dim=1)
        logits: torch.Tensor = self.gpt(inputs_embeds=inputs, use_cache=False).logits
        return logits

    def sample(
        self,
        conditions: torch.Tensor,
        length: int,
        *,
        top_k: int,
        temperature: float,
        generators: Sequence[torch.Generator | None],
    ) -> torch.Tensor:
        """Return codes (B, length) drawn for conditions (B, condition_dim), with cached keys and values.

        Args:
            top_k: draw among this many of the most likely codes.
            temperature: divides the logits.
            generators: a CPU generator per row, or None for torch's global one.

        Raises:
            ValueError: `length`, `top_k` or `temperature` out of range.
        """
        if not 1 <= length <= self.config.max_codes:
            raise ValueError(f"`length` must be 1 to {self.config.max_codes} codes, got {length}")
        if not 1 <= top_k <= self.config.codebook_size:
            raise ValueError(f"`top_k` must be 1 to {self.config.codebook_size}, got {top_k}")
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}")
        cache, codes = DynamicCache(), []
        inputs = self.prime(conditions)[:, None]
        for _ in range(length):
            logits = self.gpt(inputs_embeds=inputs, past_key_values=cache, use_cache=True).logits[:, -1]
            best, places = (logits.float() / temperature).topk(top_k)
            chances = best.softmax(-1).cpu()
            drawn = torch.stack(
                [torch.multinomial(p, 1, generator=g) for p, g in zip(chances, generators, strict=True)]
            )
            codes.append(places.gather(1, drawn.to(places.device)))
            inputs = self.gpt.transformer.wte(codes[-1])
        return torch.cat(codes, dim=1)
