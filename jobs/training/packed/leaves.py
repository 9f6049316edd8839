"""What the layers compute with in the place of what is trained: copies in the compute dtype, laid out as the products
want them, and the way of their gradients back into the flat buffers.

One adapter's lie as its flat buffer does, so that a copy of the whole is one kernel. Those of several adapters lie side
by side, so that one product serves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from jobs.training.packed.flat import FlatWeights, views


class Leaves(Protocol):
    """`rows` and `columns` take a parameter, or a stack of them, of each adapter."""

    def rows(self, stacks: Sequence[Sequence[torch.nn.Parameter]]) -> torch.Tensor:
        """[all their rows, in]: for each matrix of a stack the adapters' one under the other."""
        ...

    def columns(self, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        """[out, all their columns]: the adapters' side by side."""
        ...

    def begin_pass(self) -> None:
        """Before each forward pass: nothing is left of the gradients that autograd gave the leaves."""
        ...

    def end_pass(self) -> None:
        """After each backward pass: its gradients are in the flat buffers, in 32 bits, on top of the step's earlier
        ones."""
        ...

    def stepped(self) -> None:
        """After the optimizers' step: the leaves follow, and the gradients are zero again."""
        ...


class OwnLeaves:
    """Of one adapter. In 32 bits they are the buffer itself."""

    def __init__(self, weights: FlatWeights, dtype: torch.dtype) -> None:
        self._weights = weights
        exact = dtype is torch.float32
        self._narrow = None if exact else weights.values.to(dtype)
        self._gathered = None if exact else torch.empty_like(self._narrow)  # type: ignore[arg-type]
        shapes = [_stacked_shape(unit) for unit in weights.units]
        self._views = views(weights.gradients if self._gathered is None else self._gathered, shapes)
        computed = weights.values if self._narrow is None else self._narrow
        self._leaves = [view.detach().requires_grad_() for view in views(computed, shapes)]
        self._leaf_of = {tuple(map(id, unit)): leaf for unit, leaf in zip(weights.units, self._leaves, strict=True)}
        if exact:  # autograd adds to the flat gradients directly
            for leaf, view in zip(self._leaves, self._views, strict=True):
                leaf.grad = view

    def rows(self, stacks: Sequence[Sequence[torch.nn.Parameter]]) -> torch.Tensor:
        (stack,) = stacks
        return self._leaf_of[tuple(map(id, stack))]

    def columns(self, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        return self.rows([parameters])

    def narrow(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The parameter in the compute dtype, apart from autograd."""
        weights = self._weights
        return weights.part(weights.values if self._narrow is None else self._narrow, parameter)

    def begin_pass(self) -> None:
        if self._narrow is not None:
            for leaf in self._leaves:
                leaf.grad = None

    def end_pass(self) -> None:
        if self._gathered is not None:
            found = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in self._leaves]
            torch._foreach_copy_(self._views, found)
            self._weights.gradients.add_(self._gathered)

    def stepped(self) -> None:
        if self._narrow is not None:
            self._narrow.copy_(self._weights.values)
        self._weights.gradients.zero_()


class JoinedLeaves:
    """Of several adapters of the same sizes. Their buffers become the rows of one, so that a matrix of all of them is
    copied at once."""

    def __init__(self, weights: Sequence[FlatWeights], dtype: torch.dtype) -> None:
        self._weights = weights
        self._dtype = dtype
        count, size = len(weights), len(weights[0].values)
        self._values = weights[0].values.new_empty(count, size)
        self._gradients = torch.zeros_like(self._values)
        for each, values, gradients in zip(weights, self._values, self._gradients, strict=True):
            each.move(values, gradients)
        self._leaves: list[torch.Tensor] = []
        # For each matrix: its part of a leaf, and of which leaf, as the adapters' values and gradients are laid out.
        self._parts: list[tuple[int, slice, bool, torch.Tensor, torch.Tensor]] = []

    def rows(self, stacks: Sequence[Sequence[torch.nn.Parameter]]) -> torch.Tensor:
        first, count = stacks[0], len(stacks)
        leaf = self._new_leaf(sum(p.shape[0] for p in first) * count, first[0].shape[1])
        begin = 0
        for parameter in first:
            part = slice(begin, begin + parameter.shape[0] * count)
            self._add(parameter, part, by_row=True)
            begin = part.stop
        return self._filled(leaf)

    def columns(self, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        first = parameters[0]
        leaf = self._new_leaf(first.shape[0], first.shape[1] * len(parameters))
        self._add(first, slice(0, leaf.shape[1]), by_row=False)
        return self._filled(leaf)

    def begin_pass(self) -> None:
        for leaf in self._leaves:
            leaf.grad = None

    def end_pass(self) -> None:
        for number, part, by_row, _, gradients in self._parts:
            found = self._leaves[number].grad
            if found is not None:
                gradients.add_(_by_adapter(found, part, by_row, gradients))

    def stepped(self) -> None:
        self._follow(self._parts)
        self._gradients.zero_()

    def _new_leaf(self, *shape: int) -> torch.Tensor:
        self._leaves.append(torch.empty(shape, dtype=self._dtype, device=self._values.device))
        return self._leaves[-1]

    def _add(self, parameter: torch.nn.Parameter, part: slice, by_row: bool) -> None:
        begin = parameter.storage_offset() - self._weights[0].values.storage_offset()
        shape = (len(self._weights), *parameter.shape)
        values, gradients = (
            buffer[:, begin : begin + parameter.numel()].view(shape) for buffer in (self._values, self._gradients)
        )
        self._parts.append((len(self._leaves) - 1, part, by_row, values, gradients))

    def _filled(self, leaf: torch.Tensor) -> torch.Tensor:
        self._follow([part for part in self._parts if part[0] == len(self._leaves) - 1])
        return leaf.requires_grad_()

    def _follow(self, parts: Sequence[tuple[int, slice, bool, torch.Tensor, torch.Tensor]]) -> None:
        with torch.no_grad():
            for number, part, by_row, values, _ in parts:
                _by_adapter(self._leaves[number], part, by_row, values).copy_(values)


def _by_adapter(leaf: torch.Tensor, part: slice, by_row: bool, like: torch.Tensor) -> torch.Tensor:
    """The rows or columns of a leaf as [adapters, rows, columns] of one matrix."""
    count, rows, columns = like.shape
    if by_row:
        return leaf[part].view(count, rows, columns)
    return leaf[:, part].view(rows, count, columns).transpose(0, 1)


def _stacked_shape(unit: Sequence[torch.nn.Parameter]) -> torch.Size:
    shape = unit[0].shape
    return shape if len(unit) == 1 else torch.Size((sum(parameter.shape[0] for parameter in unit), *shape[1:]))
