"""A model's own weights replaced inside a `with` block, by exchanging the parameters' storage: nothing is copied."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch


@contextlib.contextmanager
def swapped(parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The parameters named in `tensors` hold those inside the block, and their own again after it, whatever happens."""
    own = {name: parameters[name].data for name in tensors}
    try:
        for name, tensor in tensors.items():
            parameters[name].data = tensor
        yield
    finally:
        for name, tensor in own.items():
            parameters[name].data = tensor
