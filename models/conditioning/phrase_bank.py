"""A fixed bank of generic phrases: the names of ImageNet's classes in a few templates.

Training uses phrases of the bank as texts of its images; no person described these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from models.conditioning.prompts import TEMPLATES
from models.networks.encoder import JointEncoder, encode_in_batches
from models.networks.imagenet_classes import class_names

TAU = 0.1  # temperature of the softmax over cosines when a phrase is drawn


@dataclass(frozen=True)
class PhraseBank:
    """Embeddings of P names in T templates.

    Attributes:
        phrases: (T, P, D) as encoded, of unit norm.
        image_mean: (D,) of the images that will be looked up. Images and phrases lie in different cones, so
            each side is compared minus its own mean.
    """

    phrases: torch.Tensor
    image_mean: torch.Tensor

    @classmethod
    def build(cls, encoder: JointEncoder, image_mean: torch.Tensor) -> PhraseBank:
        """Encode the names of the ImageNet classes, T thousand texts: seconds on a CPU."""
        names = class_names()
        rows = [
            encode_in_batches(encoder, [template.format(name) for name in names]).cpu()
            for template in TEMPLATES
        ]
        return cls(torch.stack(rows), image_mean.float().cpu())

    @classmethod
    def kept(cls, file: Path, encoder: Callable[[], JointEncoder], image_mean: torch.Tensor) -> PhraseBank:
        """Return the bank with the phrases in `file`; build it with `encoder()` if it is missing."""
        if not file.is_file():
            save_file({"phrases": cls.build(encoder(), image_mean).phrases.half().contiguous()}, file)
        return cls(F.normalize(load_file(file)["phrases"].float(), dim=-1), image_mean.float().cpu())

    @cached_property
    def names(self) -> torch.Tensor:
        """(P, D) of unit norm: each name's mean over the templates, minus the mean of all."""
        means = self.phrases.mean(0)
        return F.normalize(means - means.mean(0), dim=-1)

    def similar(self, embeds: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and numbers (N, k) of the names nearest to images (N, D), nearest first.

        Raises:
            ValueError: k is not 1 to P.
        """
        if not 1 <= k <= len(self.names):
            raise ValueError(f"k must be 1 to {len(self.names)}, got {k}")
        cosines = F.normalize(embeds.float() - self.image_mean, dim=-1) @ self.names.T
        found = cosines.topk(k, dim=-1)
        return found.values, found.indices

    def draw(self, embed: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
        """Draw one of the k phrases nearest to an image (D,), in any template; return its embedding (D,).

        Names with a much lower cosine than the first are seldom drawn.
        """
        cosines, numbers = self.similar(embed[None], k)
        place = torch.multinomial((cosines[0] / TAU).softmax(-1), 1, generator=generator)
        template = int(torch.randint(len(self.phrases), (), generator=generator))
        return self.phrases[template, numbers[0, place]][0]
