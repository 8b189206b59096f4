"""A second judge: a linear classifier on the vectors of an embedder with wider knowledge (YAMNet)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

DECAY = 3e-4  # weight of the squared norm of the standardised weights
STEPS = 100


class LinearJudge:
    """Multinomial logistic regression on the mean over time of standardised embeddings."""

    def __init__(self, embeds: np.ndarray, labels: Sequence[str]) -> None:
        """Fit on embeddings (N, F, D) of sounds and their classes."""
        self.labels = sorted(set(labels))
        pooled = torch.from_numpy(embeds.mean(1)).double()
        self._mean, self._scale = pooled.mean(0), pooled.std(0).clamp(min=1e-6)
        x = (pooled - self._mean) / self._scale
        target = torch.tensor([self.labels.index(label) for label in labels])
        self._weight = torch.zeros(len(self.labels), x.shape[1], dtype=torch.float64, requires_grad=True)
        self._bias = torch.zeros(len(self.labels), dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([self._weight, self._bias], max_iter=STEPS, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            solver.zero_grad()
            fit = F.cross_entropy(x @ self._weight.T + self._bias, target)
            loss: torch.Tensor = fit + DECAY * self._weight.square().sum()
            loss.backward()
            return loss

        solver.step(closure)

    @torch.no_grad()
    def probabilities(self, embeds: np.ndarray) -> np.ndarray:
        """Return (N, len(labels)) of embeddings (N, F, D)."""
        x = (torch.from_numpy(embeds.mean(1)).double() - self._mean) / self._scale
        return np.asarray((x @ self._weight.T + self._bias).softmax(-1).numpy())
