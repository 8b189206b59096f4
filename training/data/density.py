"""Weigh clips against the density of their images: rare kinds are drawn more often, without labels."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from training.data.clips import Clips

NEIGHBOUR = 10  # the median distance to this neighbour is the width of the kernel
MAX_REFERENCES = 8192  # clips to compare with; in larger sets a random part stands for all
CHUNK = 1024
FILE = "density.safetensors"


def clip_densities(clips: Clips, run: Path) -> torch.Tensor:
    """Return the densities (N,) of clips by the mean embeddings of their frames; computed once a run.

    They are kept in `run`, because a sum in another order would change a draw after a resume.
    """
    path = run / FILE
    if path.is_file():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("clips") == clips.identity:
                found: torch.Tensor = file.get_tensor("density")
                return found
    images = torch.stack([clips.embeds(i).mean(0) for i in range(len(clips))])
    made = densities(images)
    run.mkdir(parents=True, exist_ok=True)
    save_file({"density": made}, path.with_suffix(".tmp"), {"clips": clips.identity})
    os.replace(path.with_suffix(".tmp"), path)
    return made


@torch.inference_mode()
def densities(images: torch.Tensor) -> torch.Tensor:
    """Return about how many clips look like each of these (N,), itself included.

    A sum of Gaussian kernels over the clips. Their width is the median distance to the tenth nearest
    neighbour, so that no scale of the embedding space is assumed.

    Args:
        images: embeddings (N, D), one per clip; not centred, which would spread out a kind near the mean.
    """
    images, count = F.normalize(images, dim=1), len(images)
    if count <= NEIGHBOUR:
        return torch.ones(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MAX_REFERENCES]
    references, share = images[order], len(order) / count
    # A part of the clips is sparser: fewer of its members are as near.
    rank = 1 + max(1, round(NEIGHBOUR * share))
    nearest = [
        _squared(rows, references).kthvalue(rank).values
        for rows in references[: MAX_REFERENCES // 4].split(CHUNK)
    ]
    width = torch.cat(nearest).median().clamp(min=1e-6)
    sums = torch.cat(
        [(_squared(rows, references) / (-2 * width)).exp().sum(1) for rows in images.split(CHUNK)]
    )
    # A reference is its own neighbour at distance 0.
    sums[order] -= 1
    return 1 + sums.clamp(min=0) / share


def _squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return squared distances (N, M) of unit vectors (N, D) and (M, D)."""
    return (2 - 2 * a @ b.T).clamp(min=0)
