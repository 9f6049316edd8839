"""All that is trained, in one flat buffer: a step of the optimizer, its clipping and its copies are a few kernels,
however many layers there are.

The model's parameters become views of the buffer, so whoever reads or writes them meets the trained values. Where the
layers compute in fewer than 32 bits they get narrow copies, and what autograd finds for those is gathered here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class FlatWeights:
    """`groups`: the optimizer's parameter groups (jobs.training.schedule.parameter_groups). `stacks`: matrices of one
    width that lie one under the other, so that one leaf can stand for all of them."""

    def __init__(
        self, groups: list[dict[str, Any]], dtype: torch.dtype, stacks: Sequence[Sequence[torch.nn.Parameter]] = ()
    ) -> None:
        stack_of = {id(parameter): stack for stack in stacks for parameter in stack}
        # Each unit becomes one leaf: a stack, or a parameter by itself.
        in_groups = [_units(group["params"], stack_of) for group in groups]
        self.order = [
            [parameter for unit in units for parameter in unit] for units in in_groups
        ]  # as they lie in memory
        units = [unit for group in in_groups for unit in group]
        parameters = [parameter for unit in units for parameter in unit]
        device = parameters[0].device
        self.values = torch.empty(sum(p.numel() for p in parameters), dtype=torch.float32, device=device)
        self.gradients = torch.zeros_like(self.values)
        for view, parameter in zip(_views(self.values, [p.shape for p in parameters]), parameters, strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        shapes = [_stacked_shape(unit) for unit in units]
        exact = dtype is torch.float32
        self._narrow = None if exact else self.values.to(dtype)
        self._gathered = None if exact else torch.empty_like(self._narrow)  # type: ignore[arg-type]
        self._views = _views(self.gradients if self._gathered is None else self._gathered, shapes)
        computed = self.values if self._narrow is None else self._narrow
        self._leaves = [view.detach().requires_grad_() for view in _views(computed, shapes)]
        self._leaf_of = {tuple(map(id, unit)): leaf for unit, leaf in zip(units, self._leaves, strict=True)}
        if exact:  # autograd adds to the flat gradients directly
            for leaf, view in zip(self._leaves, self._views, strict=True):
                leaf.grad = view
        self.groups = self._flat_groups(groups)

    def leaf(self, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        """What the layers compute with in their place: of one parameter, or of a stack."""
        return self._leaf_of[tuple(map(id, parameters))]

    def narrow(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The parameter in the compute dtype, apart from autograd."""
        return self._part(self.values if self._narrow is None else self._narrow, parameter)

    def gradient(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The part of `gradients` that is this parameter's, in its shape."""
        return self._part(self.gradients, parameter)

    def whole(self) -> bool:
        """Whether every parameter is still a view of `values`."""
        begin = self.values.untyped_storage().data_ptr()
        return all(p.untyped_storage().data_ptr() == begin for group in self.order for p in group)

    def begin_pass(self) -> None:
        """Before each forward pass: nothing is left of the gradients that autograd gave the narrow copies."""
        if self._narrow is not None:
            for leaf in self._leaves:
                leaf.grad = None

    def end_pass(self) -> None:
        """After each backward pass: its gradients are in `gradients`, in 32 bits, on top of the step's earlier ones."""
        if self._gathered is not None:
            found = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in self._leaves]
            torch._foreach_copy_(self._views, found)
            self.gradients.add_(self._gathered)

    def clip(self, longest: float) -> torch.Tensor:
        """The gradient's length, a scalar on the device; what is longer than `longest` is shortened to it (0: not)."""
        norm = torch.linalg.vector_norm(self.gradients)
        if longest:
            self.gradients.mul_((longest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def stepped(self) -> None:
        """After the optimizer's step: the narrow copies follow, and the gradients are zero again."""
        if self._narrow is not None:
            self._narrow.copy_(self.values)
        self.gradients.zero_()

    def _part(self, buffer: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
        begin = parameter.storage_offset()  # each parameter is a view of `values`
        return buffer[begin : begin + parameter.numel()].view(parameter.shape)

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


def _stacked_shape(unit: Sequence[torch.nn.Parameter]) -> torch.Size:
    shape = unit[0].shape
    return shape if len(unit) == 1 else torch.Size((sum(parameter.shape[0] for parameter in unit), *shape[1:]))


def _views(buffer: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    parts = buffer.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
