"""How well a bundle knows a text or an image: by the training frames near it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image

from models.bundle import FAMILIARITY, Manifest
from models.conditioning.embeddings import Embeddings
from models.networks.condition_encoder import KINDS, ConditionEncoder, Kind
from models.networks.imagenet_classes import class_names
from models.retrieval.clip_index import Index
from models.retrieval.sounds import name_clips

# Frames whose mean cosine is the similarity to the training frames, and frames that describe a place.
NEAREST, AROUND = 3, 10


@dataclass(frozen=True)
class Neighbourhood:
    """Where a text or an image lies among the training frames.

    Attributes:
        familiarity: 0 to 1; 0.5 where the judge recognised half of the `dev` queries.
        names: of the nearest sounds, with their cosines, nearest first.
        embedding: centred, of unit norm.
        around: the same of the mean of the nearest frames.
    """

    familiarity: float
    names: list[tuple[str, float]]
    embedding: torch.Tensor
    around: torch.Tensor


class Frames:
    """The training frames of a bundle, named."""

    def __init__(
        self, embeddings: Embeddings, conditions: ConditionEncoder, index: Index, manifest: Manifest
    ) -> None:
        self._embeddings, encoder = embeddings, embeddings.encoder
        self._means = {kind: conditions.means[n].float().cpu() for n, kind in enumerate(KINDS)}
        image_mean = self._means["image"]
        self._frames = F.normalize(index.embeds - image_mean, dim=-1)
        anchors = F.normalize(encoder.class_anchors.float().cpu() - image_mean, dim=-1)
        self._names = name_clips(self._frames, anchors, class_names())
        scales = manifest.familiarity or FAMILIARITY.get(type(encoder).__name__, FAMILIARITY[""])
        self._scales: dict[Kind, Sequence[float]] = {"text": scales[:2], "image": scales[2:]}

    def sounds(self) -> list[tuple[str, float]]:
        """Return the names and their shares of the training clips, the most frequent first."""
        counts = Counter(self._names)
        return [(name, count / len(self._names)) for name, count in counts.most_common()]

    @torch.inference_mode()
    def place(self, content: str | Image.Image, num_names: int = 3) -> Neighbourhood:
        """Find a text or an image among the training frames."""
        kind: Kind = "text" if isinstance(content, str) else "image"
        own = self._embeddings
        raw = own.text(content) if isinstance(content, str) else own.image(content)
        embedding = F.normalize(raw.float().cpu() - self._means[kind], dim=-1)
        cosines = self._frames @ embedding
        near = cosines.topk(min(AROUND, len(cosines)))
        middle, scale = self._scales[kind]
        similarity = float(near.values[:NEAREST].mean())
        around = F.normalize(self._frames[near.indices].mean(0), dim=-1)
        names: dict[str, float] = {}
        for number in cosines.argsort(descending=True).tolist():
            names.setdefault(self._names[number], round(float(cosines[number]), 3))
            if len(names) == num_names:
                break
        familiarity = 1 / (1 + math.exp((middle - similarity) / scale))
        return Neighbourhood(round(familiarity, 3), list(names.items()), embedding, around)
