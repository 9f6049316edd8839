"""Linear layers that read the same input, with LoRA beside them, as one: queries, keys and values; gate and up.

One product with their frozen weights, one with their stacked A; what each B adds to its own columns is added by the
pass that follows the product (finishing.py), so that LoRA costs no pass over the outputs of its own. The backward pass
is written out for the same reason.

Several adapters stand in one group side by side: all tokens meet all of their A, and what is not a token's own is
struck out before B (route_). One wide product costs hardly more than one narrow one, and far less than many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from jobs.training.packed.finishing import Addend, Heads, add, gate, gate_backward_, may_wait
from jobs.training.packed.frozen import Frozen
from jobs.training.packed.pieces import route_


@dataclass(frozen=True)
class Span:
    """Which of the layers a B belongs to, and where it goes: columns of the output, and of the product with the stacked
    A."""

    layer: int
    out: slice
    rank: slice


@dataclass(frozen=True)
class Route:
    """Of several adapters: whose each column of the product with the stacked A is, and its scale."""

    owners: torch.Tensor  # int32 [columns]
    scales: torch.Tensor  # [columns]


@dataclass
class Group:
    """Layers side by side: [tokens, in] to [tokens, the outputs of all]. `adapters`, int32 [tokens], is whose each
    token is; None where there is one."""

    frozen: Frozen
    scale: float
    a: torch.Tensor | None  # [the ranks of all, in]; None where no layer of the group is trained
    bs: list[torch.Tensor]  # [out, rank] of each that is
    spans: list[Span]
    layers: int  # trained ones and others
    route: Route | None = None

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [] if self.a is None else [self.a, *self.bs]

    def inner(self, x: torch.Tensor, adapters: torch.Tensor | None) -> torch.Tensor | None:
        """scale x A^T, without autograd."""
        if self.a is None:
            return None
        if self.route is None:
            return scaled_product(x, self.a.t(), self.scale)
        assert adapters is not None
        return route_(x @ self.a.t(), adapters, self.route.owners, self.route.scales)

    def forward(
        self, x: torch.Tensor, adapters: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[Addend | None], torch.Tensor | None]:
        """(outputs, what is still to be added to those of each layer, scale x A^T), without autograd."""
        y, inner = self.frozen.product(x), self.inner(x, adapters)
        if inner is not None and not self._waits:
            for span, b in zip(self.spans, self.bs, strict=True):
                y[:, span.out].addmm_(inner[:, span.rank], b.t())
        return y, self.waiting(inner), inner

    def waiting(self, inner: torch.Tensor | None) -> list[Addend | None]:
        """What `forward` left to be added."""
        found: list[Addend | None] = [None] * self.layers
        if inner is not None and self._waits:
            for span, b in zip(self.spans, self.bs, strict=True):
                found[span.layer] = Addend(inner[:, span.rank], b.t())
        return found

    @property
    def _waits(self) -> bool:
        return all(map(may_wait, self.bs))

    def backward(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        inner: torch.Tensor | None,
        adapters: torch.Tensor | None,
        needs_dx: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """(the slope by x, those by the leaves)."""
        dx = self.frozen.product_back(dy) if needs_dx else None
        if self.a is None or inner is None:
            return dx, []
        dinner, dbs = self.backward_inner(dy, inner, adapters)
        if dx is not None:
            dx.addmm_(dinner, self.a)
        return dx, [dinner.t() @ x, *dbs]

    def backward_inner(
        self, dy: torch.Tensor, inner: torch.Tensor, adapters: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(the slope by x A^T, those by each B)."""
        dinner = torch.empty_like(inner)
        dbs = []
        scale = self.scale if self.route is None else 1.0
        for span, b in zip(self.spans, self.bs, strict=True):
            part = dy[:, span.out]
            scaled_product(part, b, scale, dinner[:, span.rank])
            dbs.append(part.t() @ inner[:, span.rank])
        if self.route is not None:
            assert adapters is not None
            route_(dinner, adapters, self.route.owners, self.route.scales)
        return dinner, dbs


def scaled_product(x: torch.Tensor, y: torch.Tensor, scale: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """scale (x y), in one call; into `out` where there is one, which may be columns of something larger."""
    found = x.new_empty(x.shape[0], y.shape[1]) if out is None else out
    return torch.addmm(found, x, y, beta=0, alpha=scale, out=found)


def project(x: torch.Tensor, onto: torch.Tensor, group: Group, adapters: torch.Tensor | None) -> torch.Tensor:
    """onto + the output of a group of one layer, [tokens, out], from x [tokens, in]."""
    return _Project.apply(x, onto, group, adapters, *group.leaves)  # type: ignore[no-any-return]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        onto: torch.Tensor,
        group: Group,
        adapters: torch.Tensor | None,
        *leaves: torch.Tensor,
    ) -> torch.Tensor:
        y, (waits,), inner = group.forward(x, adapters)
        ctx.save_for_backward(x if leaves else None, inner)
        ctx.group, ctx.adapters = group, adapters
        return add(y, onto, waits, out=y)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, inner = ctx.saved_tensors
        dx, slopes = ctx.group.backward(dy.contiguous(), x, inner, ctx.adapters, ctx.needs_input_grad[0])
        return dx, dy, None, None, *slopes


def project_heads(
    x: torch.Tensor, group: Group, heads: Heads, adapters: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [tokens, heads, size], keys and values [tokens, their heads, size], the first two turned by position."""
    return _ProjectHeads.apply(x, group, heads, adapters, *group.leaves)  # type: ignore[no-any-return]


class _ProjectHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, group: Group, heads: Heads, adapters: torch.Tensor | None, *leaves: torch.Tensor
    ) -> Any:
        y, wait, inner = group.forward(x, adapters)
        joined = y.view(len(x), -1, heads.size)
        heads.finish_(joined, wait)
        ctx.save_for_backward(x if leaves else None, inner)
        ctx.group, ctx.heads, ctx.adapters = group, heads, adapters
        return joined.split((heads.queries, heads.keys, heads.keys), dim=1)

    @staticmethod
    def backward(ctx: Any, *parts: torch.Tensor) -> Any:
        x, inner = ctx.saved_tensors
        dy = ctx.heads.slope(parts).flatten(1)
        dx, slopes = ctx.group.backward(dy, x, inner, ctx.adapters, ctx.needs_input_grad[0])
        return dx, None, None, None, *slopes


def gated_mlp(
    x: torch.Tensor,
    onto: torch.Tensor,
    gate_up: Group,
    down: Group,
    adapters: torch.Tensor | None,
    whole: bool = True,
) -> torch.Tensor:
    """onto + down(silu(gate(x)) x up(x)), [tokens, hidden]. What stands between is made again on the way back: it is
    the widest thing in the model, and cheap.

    Not `whole`: only what the way back needs is computed, and what is returned has no values."""
    leaves = (*gate_up.leaves, *down.leaves)
    return _GatedMlp.apply(x, onto, gate_up, down, adapters, whole, *leaves)  # type: ignore[no-any-return]


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        onto: torch.Tensor,
        gate_up: Group,
        down: Group,
        adapters: torch.Tensor | None,
        whole: bool,
        *leaves: torch.Tensor,
    ) -> torch.Tensor:
        y = torch.empty_like(onto)  # first: behind what soon goes it would leave a hole in memory, in every layer
        both, wait, inner = gate_up.forward(x, adapters)
        if whole:
            product, (waits,), down_inner = down.forward(gate(both, wait), adapters)
            add(product, onto, waits, out=y)
        else:
            down_inner = None if down.a is None else down.inner(gate(both, wait), adapters)
        ctx.save_for_backward(x, both, inner, down_inner)
        ctx.gate_up, ctx.down, ctx.adapters = gate_up, down, adapters
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, both, inner, down_inner = ctx.saved_tensors
        gate_up, adapters = ctx.gate_up, ctx.adapters
        dboth, slopes = _through_the_gate(dy.contiguous(), both, gate_up.waiting(inner), down_inner, ctx.down, adapters)
        dx, more = gate_up.backward(dboth, x, inner, adapters, ctx.needs_input_grad[0])
        return dx, dy, None, None, None, None, *more, *slopes


def _through_the_gate(
    dy: torch.Tensor,
    both: torch.Tensor,
    wait: list[Addend | None],
    inner: torch.Tensor | None,
    down: Group,
    adapters: torch.Tensor | None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """As Group.backward of `down`, whose input is made while its slope passes the gate."""
    dmiddle = down.frozen.product_back(dy)
    if down.a is None or inner is None:
        return gate_backward_(dmiddle, both, wait, None)[0], []
    dinner, dbs = down.backward_inner(dy, inner, adapters)
    waits = may_wait(down.a.t())
    if not waits:
        dmiddle.addmm_(dinner, down.a)
    dboth, middle = gate_backward_(dmiddle, both, wait, Addend(dinner, down.a) if waits else None)
    return dboth, [dinner.t() @ middle, *dbs]
