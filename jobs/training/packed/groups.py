"""Linear layers that read the same input, with LoRA beside them, as one: queries, keys and values; gate and up.

One product with their frozen weights, one with their stacked A, and each B added in place to its own columns, so that
LoRA costs no pass over the outputs beyond its own. The backward pass is written out for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs.training.packed.frozen import Frozen
from jobs.training.packed.pieces import gate, gate_backward, rotate_


@dataclass(frozen=True)
class Span:
    """Where one layer's B goes: columns of the output, and of the product with the stacked A."""

    out: slice
    rank: slice


@dataclass
class Group:
    """Layers side by side: [tokens, in] to [tokens, the outputs of all]."""

    frozen: Frozen
    scale: float
    a: torch.Tensor | None  # [the ranks of all, in]; None where no layer of the group is trained
    bs: list[torch.Tensor]  # [out, rank] of each that is
    spans: list[Span]

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [] if self.a is None else [self.a, *self.bs]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(outputs, scale x A^T), without autograd."""
        y = self.frozen.product(x)
        if self.a is None:
            return y, None
        inner = scaled_product(x, self.a.t(), self.scale)
        for span, b in zip(self.spans, self.bs, strict=True):
            y[:, span.out].addmm_(inner[:, span.rank], b.t())
        return y, inner

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, inner: torch.Tensor | None, needs_dx: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """(the slope by x, those by the leaves)."""
        dx = self.frozen.product_back(dy) if needs_dx else None
        if self.a is None or inner is None:
            return dx, []
        dinner = torch.empty_like(inner)
        dbs = []
        for span, b in zip(self.spans, self.bs, strict=True):
            part = dy[:, span.out]
            scaled_product(part, b, self.scale, dinner[:, span.rank])
            dbs.append(part.t() @ inner[:, span.rank])
        if dx is not None:
            dx.addmm_(dinner, self.a)
        return dx, [dinner.t() @ x, *dbs]


def scaled_product(x: torch.Tensor, y: torch.Tensor, scale: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """scale (x y), in one call; into `out` where there is one, which may be columns of something larger."""
    found = x.new_empty(x.shape[0], y.shape[1]) if out is None else out
    return torch.addmm(found, x, y, beta=0, alpha=scale, out=found)


def project(x: torch.Tensor, group: Group) -> torch.Tensor:
    """[tokens, the outputs of all] from x [tokens, in]."""
    return _Project.apply(x, group, *group.leaves)  # type: ignore[no-any-return]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group, *leaves: torch.Tensor) -> torch.Tensor:
        y, inner = group.forward(x)
        ctx.save_for_backward(x if leaves else None, inner)
        ctx.group = group
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, inner = ctx.saved_tensors
        dx, slopes = ctx.group.backward(dy.contiguous(), x, inner, ctx.needs_input_grad[0])
        return dx, None, *slopes


def project_heads(x: torch.Tensor, group: Group, heads: Heads) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [tokens, heads, size], keys and values [tokens, their heads, size], the first two turned by position."""
    return _ProjectHeads.apply(x, group, heads, *group.leaves)  # type: ignore[no-any-return]


@dataclass
class Heads:
    """How many there are, and by what they are turned: nothing without `cos` and `sin` [tokens, size]."""

    queries: int
    keys: int
    size: int
    cos: torch.Tensor | None
    sin: torch.Tensor | None

    def turn_(self, joined: torch.Tensor, back: bool = False) -> None:
        if self.cos is not None and self.sin is not None:
            rotate_(joined[:, : self.queries + self.keys], self.cos, self.sin, back)


class _ProjectHeads(torch.autograd.Function):
    """The turn is done in place, on the product on the way forward, on its slope on the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group, heads: Heads, *leaves: torch.Tensor) -> Any:
        y, inner = group.forward(x)
        joined = y.view(len(x), -1, heads.size)
        heads.turn_(joined)
        ctx.save_for_backward(x if leaves else None, inner)
        ctx.group, ctx.heads = group, heads
        return joined.split((heads.queries, heads.keys, heads.keys), dim=1)

    @staticmethod
    def backward(ctx: Any, *parts: torch.Tensor) -> Any:
        x, inner = ctx.saved_tensors
        joined = torch.cat(parts, dim=1)
        ctx.heads.turn_(joined, back=True)
        dx, slopes = ctx.group.backward(joined.view(len(joined), -1), x, inner, ctx.needs_input_grad[0])
        return dx, None, None, *slopes


def gated_mlp(x: torch.Tensor, gate_up: Group, down: Group) -> torch.Tensor:
    """down(silu(gate(x)) x up(x)), [tokens, hidden]. What stands between is made again on the way back: it is the
    widest thing in the model, and cheap."""
    return _GatedMlp.apply(x, gate_up, down, *gate_up.leaves, *down.leaves)  # type: ignore[no-any-return]


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate_up: Group, down: Group, *leaves: torch.Tensor) -> torch.Tensor:
        both, inner = gate_up.forward(x)
        y, down_inner = down.forward(gate(both))
        ctx.save_for_backward(x, both, inner, down_inner)
        ctx.gate_up, ctx.down = gate_up, down
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, both, inner, down_inner = ctx.saved_tensors
        dy = dy.contiguous()
        dboth, middle, slopes = _through_the_gate(dy, both, down_inner, ctx.down)
        del middle
        dx, more = ctx.gate_up.backward(dboth, x, inner, ctx.needs_input_grad[0])
        return dx, None, None, *more, *slopes


def _through_the_gate(
    dy: torch.Tensor, both: torch.Tensor, inner: torch.Tensor | None, down: Group
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """As Group.backward of `down`, whose input is made while its slope passes the gate."""
    dmiddle = down.frozen.product_back(dy)
    if down.a is None or inner is None:
        dboth, middle = gate_backward(dmiddle, both)
        return dboth, middle, []
    (b,) = down.bs
    dinner = scaled_product(dy, b, down.scale)
    db = dy.t() @ inner
    dmiddle.addmm_(dinner, down.a)
    dboth, middle = gate_backward(dmiddle, both)
    return dboth, middle, [dinner.t() @ middle, db]


def group_of(layers: Sequence[Any], leaf: Callable[[list[torch.nn.Parameter]], torch.Tensor]) -> Group:
    """The layers, PEFT's or bare ones, as one group. `leaf` gives what stands for several parameters, one under the
    other."""
    trained = [layer for layer in layers if hasattr(layer, "lora_A")]
    spans, out, rank, begin = [], [], 0, 0
    for layer in layers:
        base = layer.base_layer if hasattr(layer, "lora_A") else layer
        if hasattr(layer, "lora_A"):
            (name,) = layer.active_adapters
            size = layer.r[name]
            spans.append(Span(slice(begin, begin + base.out_features), slice(rank, rank + size)))
            rank += size
        begin += base.out_features
        out.append(base)
    return Group(
        frozen=Frozen.of(out),
        scale=_scale(trained),
        a=leaf([_matrix(layer, "lora_A") for layer in trained]) if trained else None,
        bs=[leaf([_matrix(layer, "lora_B")]) for layer in trained],
        spans=spans,
    )


def can_group(layers: Sequence[Any]) -> bool:
    """Whether what is trained beside these layers is LoRA and nothing else, alike for all."""
    trained = [layer for layer in layers if hasattr(layer, "lora_A")]
    if any(getattr(layer.lora_dropout[layer.active_adapters[0]], "p", 0) for layer in trained):
        return False
    return len({_scale([layer]) for layer in trained}) <= 1 and not any(layer.lora_variant for layer in trained)


def _matrix(layer: Any, which: str) -> torch.nn.Parameter:
    (name,) = layer.active_adapters
    return getattr(layer, which)[name].weight  # type: ignore[no-any-return]


def _scale(trained: Sequence[Any]) -> float:
    return float(trained[0].scaling[trained[0].active_adapters[0]]) if trained else 1.0
