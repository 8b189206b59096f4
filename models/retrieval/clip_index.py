"""The retrieval index of a bundle: embeddings, metadata and thumbnails of the training clips.

It holds no recording.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from models.audio.attributes import by_name
from models.bundle import BundleError
from models.retrieval.thumbnails import Thumbnails

TENSORS, LINES = "index.safetensors", "index.jsonl"


class Index:
    """Training clips of a bundle.

    Attributes:
        embeds: (N, D) of unit norm, each the mean over a clip's frames, as encoded.
        thumbnails: small log-mels of the clips, to find copies; None in older bundles, for very many clips.
        clips: metadata of clip n: `video`, `start_s`, `duration_s`, `source`, `licence`, and `attributes` as
            `models.audio.attributes.measure` gives them.
    """

    def __init__(
        self, embeds: torch.Tensor, clips: Sequence[dict[str, Any]], thumbnails: Thumbnails | None = None
    ) -> None:
        """Join embeddings, metadata and thumbnails.

        Raises:
            BundleError: their numbers differ, or there are none.
        """
        if len(embeds) != len(clips) or not len(clips):
            raise BundleError(f"retrieval index: {len(embeds)} embeddings of {len(clips)} clips")

        if thumbnails is not None and len(thumbnails.small) != len(clips):
            raise BundleError(f"retrieval index: {len(thumbnails.small)} thumbnails of {len(clips)} clips")
        self.embeds, self.clips, self.thumbnails = embeds, list(clips), thumbnails

    @classmethod
    def read(cls, folder: Path) -> Index | None:
        """Return the index of a bundle folder, or None if it has none.

        Raises:
            BundleError: it cannot be read.
        """
        if not (folder / TENSORS).is_file():
            return None
        try:
            clips = [json.loads(line) for line in (folder / LINES).read_text().splitlines()]
            tensors = load_file(folder / TENSORS)
            thumbnails = Thumbnails.read(tensors) if "pictures" in tensors else None
            return cls(tensors["embeds"].float(), clips, thumbnails)
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise BundleError(f"retrieval index of {folder} cannot be read: {error}") from error

    def write(self, folder: Path) -> None:
        """Write the index; embeddings in half precision."""
        folder.mkdir(parents=True, exist_ok=True)

        thumbnails = self.thumbnails.tensors() if self.thumbnails else {}
        save_file({"embeds": F.normalize(self.embeds, dim=-1).half(), **thumbnails}, folder / TENSORS)
        (folder / LINES).write_text("".join(json.dumps(clip) + "\n" for clip in self.clips))

    def nearest(self, embeds: torch.Tensor, k: int = 1, *, mean: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers (B, k) of the clips nearest to embeddings (B, D) by cosine, nearest first.

        At most as many as there are clips.

        Args:
            mean: (D,), subtracted from the clips' embeddings where `embeds` are centred.
        """
        queries = F.normalize(embeds.float().cpu(), dim=-1)
        cosines = queries @ self.embeds.T

        if mean is not None:
            # (e - m) q / |e - m|, without a centred copy of the whole index
            mean = mean.float().cpu()
            lengths = self.embeds.square().sum(-1) - 2 * self.embeds @ mean + mean.square().sum()
            cosines = (cosines - (queries @ mean)[:, None]) / lengths.clamp(min=1e-12).sqrt()
        return cosines.topk(min(k, len(self.clips)), dim=-1).indices

    def attributes(self, numbers: Sequence[int]) -> list[dict[str, float]]:
        """Return the attributes, by the names of requests, of the clips that have them."""
        return [by_name(self.clips[n]["attributes"]) for n in numbers if "attributes" in self.clips[n]]
