"""Record and replay a training step as CUDA graphs, as launching its short kernels takes long."""

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

WARM_UP = 3  # passes before the recording, after PyTorch's notes on CUDA graphs


def can_record_graphs(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Return whether to record: the recipe asks for it, one process, a CUDA device, no accumulation."""
    alone = accelerator.device.type == "cuda" and accelerator.num_processes == 1
    return recipe.cuda_graphs and alone and recipe.denoiser.gradient_accumulation_steps == 1


@dataclass(frozen=True)
class _RecordedStep:
    graph: torch.cuda.CUDAGraph
    batch: Batch
    loss: torch.Tensor
    gradients: tuple[torch.Tensor | None, ...]


class CudaGraphs:
    """Compute loss and gradients of a model with one recorded graph per shape of batch.

    The model must not read values from the device, and may draw only from the device's default generator.
    """

    def __init__(self, model: nn.Module, context: Callable[[], AbstractContextManager[object]]) -> None:
        """Record `model(batch)` as it runs within `context()`."""
        self.model, self.context = model, context
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._pool: Any = None
        self._recorded: dict[tuple[torch.Size, ...], _RecordedStep] = {}

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the loss () and set the parameters' gradients; both are valid until the next call."""
        shapes = tuple(x.shape for x in batch.tensors)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record(batch)
        recorded = self._recorded[shapes]
        for own, x in zip(recorded.batch.tensors, batch.tensors, strict=True):
            own.copy_(x)
        recorded.graph.replay()
        for p, gradient in zip(self.parameters, recorded.gradients, strict=True):
            p.grad = gradient
        return recorded.loss

    def _record(self, batch: Batch) -> _RecordedStep:
        own = Batch(*(x.clone() for x in batch.tensors))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._passes(own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss, gradients = self._passes(own)
        self._pool = graph.pool()
        return _RecordedStep(graph, own, loss, gradients)

    def _passes(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        with self.context():
            loss = self.model(batch)
        # backward() would accumulate on the stream that first used a parameter. Fused optimizers need
        # contiguous gradients.
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), tuple(g if g is None else g.contiguous() for g in gradients)
