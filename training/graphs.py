"""Forward and backward passes as CUDA graphs: a small network's step is many short kernels, and launching them one by one takes longer than they do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)


class _Holder(nn.Module):
    """The same module under another name: capturing replaces the `forward` of what it is given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.module(*inputs)


class Graphed:
    """A module that takes tensors alone, recorded once for each shape of its inputs and replayed from then on; where it is off, the module itself.

    What is recorded must not ask the device for a value. Of its outputs those that need no gradient are to be detached.
    """

    def __init__(self, module: nn.Module, *, on: bool) -> None:
        self.module, self.on = module, on
        self._recorded: dict[tuple[torch.Size, ...], Callable[..., Any]] = {}

    def __call__(self, *inputs: torch.Tensor) -> Any:
        if not self.on:
            return self.module(*inputs)
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self._recorded:
            logger.info("recording a CUDA graph for inputs of %s", [tuple(shape) for shape in shapes])
            sample = tuple(x.detach().clone() for x in inputs)
            self._recorded[shapes] = torch.cuda.make_graphed_callables(
                _Holder(self.module), sample, allow_unused_input=True
            )
        return self._recorded[shapes](*inputs)
