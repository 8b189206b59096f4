"""Weigh clips against the density of their images: rare kinds are drawn more often, without labels."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from training.data.clips import Clips

NEIGHBOURS = 10  # of a clip in the graph
STEPS, WALKERS = 4, 256  # of random walks over it
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
    """Return about how many clips are of a kind with each of these (N,), itself included.

    Random walks over the graph of nearest neighbours start at each clip. The result is the inverse of the
    probability that two of them end at the same clip. It does not depend on distances: with those, a kind of
    many different images would seem rare, and a kind of few alike ones frequent.

    Args:
        images: embeddings (N, D), one per clip.
    """
    count = len(images)
    if count <= NEIGHBOURS:
        return torch.ones(count)
    starts, others = _graph(F.normalize(images - images.mean(0), dim=1))
    degrees = starts.diff()
    g = torch.Generator().manual_seed(0)
    found = []
    for clips in torch.arange(count).split(CHUNK):
        at = clips[:, None].expand(-1, WALKERS)
        for _ in range(STEPS):
            at = others[starts[at] + (torch.rand(at.shape, generator=g) * degrees[at]).long()]
        ends = at.sort(1).values
        # Of a run of n equal ends, n - 1 pairs are neighbours at distance 1, n - 2 at distance 2, …
        lengths = torch.ones_like(ends)
        for n in range(1, WALKERS):
            lengths[:, n] += torch.where(ends[:, n] == ends[:, n - 1], lengths[:, n - 1], 0)
        pairs = (lengths - 1).sum(1).clamp(min=1)
        found.append(WALKERS * (WALKERS - 1) / 2 / pairs)
    return torch.cat(found)


def _graph(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first places (N + 1,) of clips in a list of their neighbours, and that list.

    Each clip is its own neighbour, and neighbourhood holds in both directions.
    """
    on = images.to("cuda") if torch.cuda.is_available() else images
    near = torch.cat([(rows @ on.T).topk(NEIGHBOURS + 1).indices.cpu() for rows in on.split(CHUNK)])
    clips = torch.arange(len(images))[:, None].expand_as(near)
    pairs = torch.cat([torch.stack([clips, near]).flatten(1), torch.stack([near, clips]).flatten(1)], 1)
    order = pairs[0].argsort(stable=True)
    starts = F.pad(torch.bincount(pairs[0], minlength=len(images)).cumsum(0), (1, 0))
    return starts, pairs[1][order]
