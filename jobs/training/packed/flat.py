"""All that one adapter trains, in one flat buffer: a step of the optimizer, its clipping and its copies are a few
kernels, however many layers there are.

The model's parameters become views of the buffer, so whoever reads or writes them meets the trained values. What the
layers compute with is leaves.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class FlatWeights:
    """`groups`: the optimizer's parameter groups (jobs.training.schedule.parameter_groups). `stacks`: matrices of one
    width that lie one under the other, so that one leaf can stand for all of them."""

    def __init__(self, groups: list[dict[str, Any]], stacks: Sequence[Sequence[torch.nn.Parameter]] = ()) -> None:
        stack_of = {id(parameter): stack for stack in stacks for parameter in stack}
        in_groups = [_units(group["params"], stack_of) for group in groups]
        self.order = [
            [parameter for unit in units for parameter in unit] for units in in_groups
        ]  # as they lie in memory
        # Each becomes one leaf: a stack, or a parameter by itself.
        self.units = [unit for group in in_groups for unit in group]
        self._parameters = [parameter for unit in self.units for parameter in unit]
        device = self._parameters[0].device
        self.values = torch.empty(sum(p.numel() for p in self._parameters), dtype=torch.float32, device=device)
        self.gradients = torch.zeros_like(self.values)
        for view, parameter in zip(self._of_each(self.values), self._parameters, strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.groups = self._flat_groups(groups)

    def move(self, values: torch.Tensor, gradients: torch.Tensor) -> None:
        """Live in these buffers from now on. The optimizer goes on as before."""
        values.copy_(self.values)
        gradients.copy_(self.gradients)
        self.values, self.gradients = values, gradients
        for view, parameter in zip(self._of_each(values), self._parameters, strict=True):
            parameter.data = view
        begin = 0
        for group in self.groups:
            (whole,) = group["params"]
            part = slice(begin, begin + whole.numel())
            whole.data, whole.grad = values[part], gradients[part]
            begin = part.stop

    def part(self, buffer: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The part of a buffer as long as `values` that is this parameter's, in its shape."""
        begin = parameter.storage_offset() - self.values.storage_offset()  # each parameter is a view of `values`
        return buffer[begin : begin + parameter.numel()].view(parameter.shape)

    def gradient(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The part of `gradients` that is this parameter's, in its shape."""
        return self.part(self.gradients, parameter)

    def whole(self) -> bool:
        """Whether every parameter is still a view of `values`."""
        begin = self.values.untyped_storage().data_ptr()
        return all(p.untyped_storage().data_ptr() == begin for p in self._parameters)

    def clip(self, longest: float) -> torch.Tensor:
        """The gradient's length, a scalar on the device; what is longer than `longest` is shortened to it (0: not)."""
        norm = torch.linalg.vector_norm(self.gradients)
        if longest:
            self.gradients.mul_((longest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _of_each(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        return views(buffer, [parameter.shape for parameter in self._parameters])

    def _flat_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same groups, each with one flat parameter."""
        flat, begin = [], 0
        for group in groups:
            end = begin + sum(parameter.numel() for parameter in group["params"])
            whole = torch.nn.Parameter(self.values[begin:end])
            whole.grad = self.gradients[begin:end]
            flat.append({**group, "params": [whole]})
            begin = end
        return flat


def views(buffer: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    """The buffer as tensors of these shapes, one after another."""
    parts = buffer.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _units(
    parameters: Sequence[torch.nn.Parameter], stack_of: dict[int, Sequence[torch.nn.Parameter]]
) -> list[tuple[torch.nn.Parameter, ...]]:
    """The parameters in their order, but a stack together where its first stands."""
    units: list[tuple[torch.nn.Parameter, ...]] = []
    taken: set[int] = set()
    for parameter in parameters:
        if id(parameter) not in taken:
            unit = tuple(stack_of.get(id(parameter), (parameter,)))
            units.append(unit)
            taken.update(map(id, unit))
    return units
