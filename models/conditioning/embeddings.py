"""Embeddings of the texts and images of requests; the last ones are kept."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from PIL import Image

from models.conditioning.prompts import templated
from models.networks.encoder import JointEncoder

# A job, questions and notes about it, and the images of one video.
KEPT = 256


class Embeddings:
    """Embeds one text or image at a time: in a batch, padding would depend on the others.

    For one thread at a time.
    """

    def __init__(self, encoder: JointEncoder) -> None:
        self.encoder = encoder
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def image(self, image: Image.Image) -> torch.Tensor:
        """Return the embedding (D,) of an image."""
        key = image.mode, image.size, hashlib.sha256(image.tobytes()).digest()
        return self._get(key, lambda: self.encoder.encode_image([image]))[0]

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings (N, D) of a text in N templates, encoded together."""
        return self._get(tuple(texts), lambda: self.encoder.encode_text(list(texts)))

    def text(self, text: str) -> torch.Tensor:
        """Return the embedding (D,) of a text; that of its templates, up to rounding, if it is kept."""
        texts = templated(text)
        if (text,) not in self._kept and tuple(texts) in self._kept and text in texts:
            return self.texts(texts)[texts.index(text)]
        return self.texts([text])[0]

    def _get(self, key: Hashable, encode: Callable[[], torch.Tensor]) -> torch.Tensor:
        found = self._kept.get(key)
        # The encoder may have moved.
        if found is None or found.device != self.encoder.device:
            found = encode()
        self._kept[key] = found
        self._kept.move_to_end(key)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found
