"""What the layers compute with in the place of what is trained: copies in the compute dtype, laid out as the products
want them, and the way of their gradients back into the flat buffers.

One adapter's lie as its flat buffer does, so that a copy of the whole is one kernel. Those of several adapters lie side
by side, so that one product serves all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Block:
    """One matrix of all adapters: where it lies in the leaves and in the flat buffers."""

    shape: tuple[int, int, int]  # adapters, rows, columns
    strides: tuple[int, int, int]  # in the leaves
    place: int  # in the leaves
    begin: int  # in one adapter's flat buffer


class JoinedLeaves:
    """Of several adapters of the same sizes. Their buffers become the rows of one, so that a matrix of all of them is
    copied at once, and with it those of all layers, which follow each other at equal distances."""

    def __init__(self, weights: Sequence[FlatWeights], dtype: torch.dtype) -> None:
        count, size = len(weights), len(weights[0].values)
        self._first = weights[0]
        self._values = weights[0].values.new_empty(count, size)
        self._gradients = torch.zeros_like(self._values)
        for each, values, gradients in zip(weights, self._values, self._gradients, strict=True):
            each.move(values, gradients)
        self._flat = torch.empty(count * size, dtype=dtype, device=self._values.device)
        self._gathered = torch.zeros_like(self._flat)
        self._leaves: list[torch.Tensor] = []
        self._blocks: list[_Block] = []
        self._used = 0  # numbers of `_flat` that belong to leaves

    def rows(self, stacks: Sequence[Sequence[torch.nn.Parameter]]) -> torch.Tensor:
        place, count = self._used, len(stacks)
        for parameter in stacks[0]:
            rows, columns = parameter.shape
            self._add(parameter, (rows * columns, columns, 1), place)
            place += count * parameter.numel()
        return self._leaf(place, stacks[0][0].shape[1])

    def columns(self, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        first, count = parameters[0], len(parameters)
        columns = first.shape[1]
        self._add(first, (columns, count * columns, 1), self._used)
        return self._leaf(self._used + count * first.numel(), count * columns)

    def begin_pass(self) -> None:
        for leaf in self._leaves:
            leaf.grad = None

    def end_pass(self) -> None:
        found = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in self._leaves]
        torch._foreach_copy_(views(self._gathered[: self._used], [leaf.shape for leaf in self._leaves]), found)
        for ours, gathered in zip(self._of_layers(self._gradients), self._of_leaves(self._gathered), strict=True):
            ours.add_(gathered)

    def stepped(self) -> None:
        for ours, leaves in zip(self._of_layers(self._values), self._of_leaves(self._flat), strict=True):
            leaves.copy_(ours)
        self._gradients.zero_()

    def _leaf(self, end: int, columns: int) -> torch.Tensor:
        """The next one; it is filled at once."""
        leaf = self._flat[self._used : end].view(-1, columns).detach()
        for block in self._blocks:
            if block.place >= self._used:
                ours = self._values.as_strided(block.shape, self._flat_strides(block), block.begin)
                self._flat.as_strided(block.shape, block.strides, block.place).copy_(ours)
        self._used = end
        self._leaves.append(leaf.requires_grad_())
        return leaf

    def _add(self, parameter: torch.nn.Parameter, strides: tuple[int, int, int], place: int) -> None:
        begin = parameter.storage_offset() - self._first.values.storage_offset()
        shape = (len(self._values), *parameter.shape)
        self._blocks.append(_Block(shape, strides, place, begin))  # type: ignore[arg-type]

    def _of_layers(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """Of a buffer [adapters, numbers] the matrices of each kind, [layers, adapters, rows, columns]."""
        return [
            buffer.as_strided(
                (len(kind), *kind[0].shape), (_step(kind, "begin"), *self._flat_strides(kind[0])), kind[0].begin
            )
            for kind in self._kinds
        ]

    def _of_leaves(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The same of a buffer that lies as the leaves do."""
        return [
            buffer.as_strided((len(kind), *kind[0].shape), (_step(kind, "place"), *kind[0].strides), kind[0].place)
            for kind in self._kinds
        ]

    def _flat_strides(self, block: _Block) -> tuple[int, int, int]:
        return (self._values.shape[1], block.shape[2], 1)

    @functools.cached_property
    def _kinds(self) -> list[list[_Block]]:
        """The blocks by their place in a layer, where all layers are alike; else each by itself."""
        blocks = self._blocks
        for period in range(1, len(blocks)):
            kinds = [blocks[start::period] for start in range(period)]
            if len(blocks) % period == 0 and all(map(_even, kinds)):
                return kinds
        return [[block] for block in blocks]


def _even(kind: Sequence[_Block]) -> bool:
    """Whether the blocks are of one shape and follow each other at equal distances."""
    first = kind[0]
    return all(
        (block.shape, block.strides) == (first.shape, first.strides)
        and block.place - first.place == number * _step(kind, "place")
        and block.begin - first.begin == number * _step(kind, "begin")
        for number, block in enumerate(kind)
    )


def _step(kind: Sequence[_Block], name: str) -> int:
    return getattr(kind[1], name) - getattr(kind[0], name) if len(kind) > 1 else 0


def _stacked_shape(unit: Sequence[torch.nn.Parameter]) -> torch.Size:
    shape = unit[0].shape
    return shape if len(unit) == 1 else torch.Size((sum(parameter.shape[0] for parameter in unit), *shape[1:]))
