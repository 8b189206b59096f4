"""The passes of a training step as CUDA graphs: a small network's step is thousands of short kernels, and to launch them one by one takes longer than they do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from training.data.batches import Batch
from training.recipe import Recipe

WARM_UP = 3  # passes before one is recorded, as PyTorch's notes on CUDA graphs ask for


def recordable(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Return whether steps are to be recorded: where the recipe says so, in one process on a CUDA device, without accumulation."""
    alone = accelerator.device.type == "cuda" and accelerator.num_processes == 1
    return recipe.cuda_graphs and alone and recipe.denoiser.gradient_accumulation_steps == 1


@dataclass(frozen=True)
class _Record:
    graph: torch.cuda.CUDAGraph
    batch: Batch
    loss: torch.Tensor
    gradients: tuple[torch.Tensor | None, ...]


class Recorded:
    """Loss and gradients of a model, recorded once for each shape of batch and replayed from then on.

    What is recorded must not ask the device for a value, and may draw random numbers of the device's default generator alone.
    """

    def __init__(self, model: nn.Module, context: Callable[[], AbstractContextManager[object]]) -> None:
        """Record `model(batch)` as it runs within `context()`."""
        self.model, self.context = model, context
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._pool: Any = None
        self._records: dict[tuple[torch.Size, ...], _Record] = {}

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the loss (), and leave its gradients in the parameters. Both hold until the next call."""
        shapes = tuple(x.shape for x in batch.tensors)
        if shapes not in self._records:
            self._records[shapes] = self._record(batch)
        record = self._records[shapes]
        for place, x in zip(record.batch.tensors, batch.tensors, strict=True):
            place.copy_(x)
        record.graph.replay()
        for p, gradient in zip(self.parameters, record.gradients, strict=True):
            p.grad = gradient
        return record.loss

    def _record(self, batch: Batch) -> _Record:
        place = Batch(*(x.clone() for x in batch.tensors))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._passes(place)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss, gradients = self._passes(place)
        self._pool = graph.pool()
        return _Record(graph, place, loss, gradients)

    def _passes(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        with self.context():
            loss = self.model(batch)
        # Not backward(): what adds to `.grad` belongs to the stream on which a parameter was first used. It also sees to the strides, as fused optimizers need.
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), tuple(g if g is None else g.contiguous() for g in gradients)
