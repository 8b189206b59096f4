"""Move a trained denoiser to another joint encoder, by the clips that both encoders embedded.

The denoiser reads conditions through one linear layer. The rotation that brings the new embeddings nearest to
the old ones (orthogonal Procrustes, Schönemann 1966) goes in front of that layer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from models.networks.condition_encoder import ConditionEncoder
from models.networks.denoiser import Denoiser
from models.retrieval.clip_index import Index
from training.data.clips import Clips, ClipSet

CONDITION_LAYER = "transformer.text_embed.proj.0.weight"
LEAST_SHARED = 100  # clips


def adapt_to_encoder(
    condition_encoder: ConditionEncoder, denoiser: Denoiser, index: Index | None, clips: ClipSet
) -> tuple[ConditionEncoder, Denoiser]:
    """Return both parts for the encoder of `clips`.

    Args:
        index: of the bundle that the parts come from; its clips are matched by video and start.

    Raises:
        ValueError: fewer than `LEAST_SHARED` clips are in both, or the new embeddings have fewer values.
    """
    old, new = _shared(index, clips.train)
    dims = condition_encoder.config.embed_dim, len(clips.image_mean)
    if len(old) < LEAST_SHARED or dims[1] < dims[0]:
        raise ValueError(
            f"--init: its encoder differs from that of the clips; {len(old)} clips are in both "
            f"({LEAST_SHARED} needed), embeddings have {dims[0]} and {dims[1]} values"
        )
    centred_old = condition_encoder.centre(old, "image")
    centred_new = F.normalize(new - clips.image_mean, dim=-1)
    rotation = procrustes(centred_new, centred_old)  # (old D, new D)
    # Tokens are embeddings times the root of their size.
    scale = math.sqrt(dims[0] / dims[1])
    weights = denoiser.state_dict()
    weights[CONDITION_LAYER] = weights[CONDITION_LAYER] @ rotation * scale
    moved = Denoiser(**(_settings(denoiser) | {"condition_dim": dims[1]}))
    moved.load_state_dict(weights)
    changed = ConditionEncoder(**(_settings(condition_encoder) | {"embed_dim": dims[1], "bank_size": 0}))
    own = condition_encoder.state_dict()
    tokens = {name: own[name] for name in ("scalar_projection", "sigma_projection.bias") if name in own}
    fresh = changed.state_dict() | {name: value @ rotation / scale for name, value in tokens.items()}
    fresh["sigma_projection.weight"] = rotation.T @ own["sigma_projection.weight"] / scale
    fresh["means"] = torch.stack([clips.image_mean, clips.text_mean])
    changed.load_state_dict(fresh)
    return changed, moved


def procrustes(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return R (E, D), R Rᵀ = 1, with the least distance of `source` (N, D) Rᵀ to `target` (N, E), E <= D."""
    u, _, v = torch.linalg.svd(target.T.double() @ source.double(), full_matrices=False)
    return (u @ v).to(source.dtype)


def _settings(part: ConditionEncoder | Denoiser) -> dict[str, object]:
    return {name: value for name, value in part.config.items() if not name.startswith("_")}


def _shared(index: Index | None, clips: Clips) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean embeddings (N, D) of the clips in both, by the old and by the new encoder."""
    places = {} if index is None else {(c["video"], c["start_s"]): n for n, c in enumerate(index.clips)}
    pairs = [
        (places[key], i)
        for i, line in enumerate(clips.index)
        if (key := (line["video"], line["start_s"])) in places
    ]
    if index is None or not pairs:
        return torch.zeros(0, 1), torch.zeros(0, 1)
    new = torch.stack([clips.embeds(i).mean(0) for _, i in pairs])
    return index.embeds[[n for n, _ in pairs]], new
