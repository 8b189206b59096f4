"""Names for the training clips, by the classes nearest to their frames. No label is used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

# Clusters whose mean frames have at least this cosine are one.
ALIKE = 0.5


def name_clips(frames: torch.Tensor, classes: torch.Tensor, names: Sequence[str]) -> list[str]:
    """Return for each clip the name of its cluster: that of the class nearest to the cluster's mean.

    The first clusters are the clips with the same nearest class; the two most alike are joined until none
    are alike.

    Args:
        frames: (N, D) of unit norm, centred.
        classes: (C, D) of unit norm, centred by the same mean.
        names: of the classes.
    """
    nearest = (frames @ classes.T).argmax(-1)
    found, cluster = nearest.unique(return_inverse=True)
    sums = torch.zeros(len(found), frames.shape[1]).index_add_(0, cluster, frames)
    while len(sums) > 1:
        means = F.normalize(sums, dim=-1)
        cosines = means @ means.T
        cosines.fill_diagonal_(-1)
        if cosines.max() < ALIKE:
            break
        one, other = sorted(divmod(int(cosines.argmax()), len(sums)))
        sums[one] += sums[other]
        sums = torch.cat([sums[:other], sums[other + 1 :]])
        cluster[cluster == other] = one
        cluster[cluster > other] -= 1
    best = (F.normalize(sums, dim=-1) @ classes.T).argmax(-1).tolist()
    return [names[best[n]] for n in cluster.tolist()]
