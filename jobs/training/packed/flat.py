"""All that is trained, in one flat buffer: a step of the optimizer, its clipping and its copies are a few kernels,
however many layers there are.

The model's parameters become views of the buffer, so whoever reads or writes them meets the trained values. Where the
layers compute in fewer than 32 bits they get narrow copies, and what autograd finds for those is gathered here.
"""

from __future__ import annotations

from typing import Any

import torch


class FlatWeights:
    """`groups`: the optimizer's parameter groups (jobs.training.schedule.parameter_groups)."""

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> None:
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        sizes = [parameter.numel() for parameter in self._parameters]
        device = self._parameters[0].device
        self.values = torch.empty(sum(sizes), dtype=torch.float32, device=device)
        self.gradients = torch.zeros_like(self.values)
        for view, parameter in zip(self._views(self.values), self._parameters, strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self._narrow = self._gathered = None
        if dtype is torch.float32:
            self._leaves: list[torch.Tensor] = list(self._parameters)
            self._bind_gradients()
        else:
            self._narrow = self.values.to(dtype)
            self._gathered = torch.empty_like(self._narrow)
            self._leaves = [view.detach().requires_grad_() for view in self._views(self._narrow)]
            self._gathered_views = self._views(self._gathered)
        self._leaf_of = {id(p): leaf for p, leaf in zip(self._parameters, self._leaves, strict=True)}
        self.groups = self._flat_groups(groups)

    def leaf(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """What the layers compute with in its place."""
        return self._leaf_of[id(parameter)]

    def begin_pass(self) -> None:
        """Before each forward pass: nothing is left of the gradients that autograd gave the narrow copies."""
        if self._narrow is not None:
            for leaf in self._leaves:
                leaf.grad = None

    def end_pass(self) -> None:
        """After each backward pass: its gradients are in `gradients`, in 32 bits, on top of the step's earlier ones."""
        if self._gathered is not None:
            found = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in self._leaves]
            torch._foreach_copy_(self._gathered_views, found)
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

    def _bind_gradients(self) -> None:
        """Autograd adds to the flat gradients directly."""
        for leaf, view in zip(self._leaves, self._views(self.gradients), strict=True):
            leaf.grad = view

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

    def _views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        parts = buffer.split([parameter.numel() for parameter in self._parameters])
        return [part.view(parameter.shape) for part, parameter in zip(parts, self._parameters, strict=True)]
