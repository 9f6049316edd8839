"""What finishes a product of a decoder layer: the sum with what came in, the gate, the rotation of heads.

On a GPU each is one pass over memory (finishing_kernels.py), which adds on its way what adapters add to the product,
left [tokens, rank] times right [rank, columns]: by itself that would be a pass over all of the product for a few
operations. Elsewhere it is added at once (groups.py), and nothing waits.

No autograd: groups.py writes the backward passes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import silu

from jobs.training.packed.pieces import rotate_reference_

_MOST_RANK = 64  # above, multiplying tile by tile takes longer than a pass


class Addend(NamedTuple):
    """What is still to be added to a product, not yet multiplied."""

    left: torch.Tensor  # [tokens, rank], its rows contiguous
    right: torch.Tensor  # [rank, columns]

    def added_to(self, product: torch.Tensor) -> torch.Tensor:
        return torch.addmm(product, self.left.to(product.dtype), self.right.to(product.dtype))


@dataclass
class Heads:
    """How many a product holds, and by what they are turned: nothing without `cos` and `sin` [tokens, size]."""

    queries: int
    keys: int  # and as many of values
    size: int
    cos: torch.Tensor | None
    sin: torch.Tensor | None

    def finish_(self, joined: torch.Tensor, wait: Sequence[Addend | None]) -> None:
        """Add what waits to `joined` [tokens, heads, size], queries, keys and values, and turn what turns, in place.
        `wait`: of each of the three."""
        if not joined.is_cuda:
            finish_heads_reference_(joined, self, wait)
        elif self.cos is not None or any(wait):
            from jobs.training.packed import finishing_kernels

            finishing_kernels.finish_heads_(joined, self, wait)

    def slope(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The slope by the product, [tokens, heads, size], from those by queries, keys and values."""
        if self.cos is None or self.sin is None:
            return torch.cat(list(parts), dim=1)
        if parts[0].is_cuda:
            from jobs.training.packed import kernels

            return kernels.join_heads(parts, self.cos, self.sin)
        return join_heads_reference(parts, self.cos, self.sin)


def may_wait(b: torch.Tensor) -> bool:
    """Whether what B [out, rank], or A turned over, adds is left to the pass that follows the product."""
    return b.is_cuda and b.shape[1] <= _MOST_RANK


def finish_heads_reference_(x: torch.Tensor, heads: Heads, wait: Sequence[Addend | None]) -> None:
    """As Heads.finish_."""
    counts = (heads.queries, heads.keys, heads.keys)
    for part, addend in zip(x.split(counts, dim=1), wait, strict=True):
        if addend:
            part += (addend.left.to(x.dtype) @ addend.right.to(x.dtype)).view_as(part)
    if heads.cos is not None and heads.sin is not None:
        rotate_reference_(x[:, : heads.queries + heads.keys], heads.cos, heads.sin, 1.0)


def join_heads_reference(parts: Sequence[torch.Tensor], cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The parts [tokens, heads, size] side by side, all but the last turned back."""
    joined = torch.cat(list(parts), dim=1)
    rotate_reference_(joined[:, : -parts[2].shape[1]], cos, sin, -1.0)
    return joined


def add(y: torch.Tensor, onto: torch.Tensor, waits: Addend | None, out: torch.Tensor) -> torch.Tensor:
    """y + onto, [tokens, columns], with what waits; written to `out`, which may be y."""
    if y.is_cuda:
        from jobs.training.packed import finishing_kernels

        return finishing_kernels.add(y, onto, waits, out)
    return add_reference(y, onto, waits, out)


def add_reference(
    y: torch.Tensor, onto: torch.Tensor, waits: Addend | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    return torch.add(waits.added_to(y) if waits else y, onto, out=out)


def gate(both: torch.Tensor, wait: Sequence[Addend | None]) -> torch.Tensor:
    """silu(gate) x up of [tokens, gate | up]. `wait`: of gate, of up; `both` stays as it is."""
    if both.is_cuda:
        from jobs.training.packed import finishing_kernels

        return finishing_kernels.gate(both, wait)
    return gate_reference(both, wait)


def gate_backward_(
    dy: torch.Tensor, both: torch.Tensor, wait: Sequence[Addend | None], slope: Addend | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the slope by `both`, gate(both) once more); on a GPU they stand where `both` and `dy` stood. `slope` waits to be
    added to dy."""
    if dy.is_cuda:
        from jobs.training.packed import finishing_kernels

        return finishing_kernels.gate_backward_(dy, both, wait, slope)
    return gate_backward_reference(dy, both, wait, slope)


def gate_reference(both: torch.Tensor, wait: Sequence[Addend | None]) -> torch.Tensor:
    gates, ups = _finished(both, wait)
    return silu(gates) * ups


def gate_backward_reference(
    dy: torch.Tensor, both: torch.Tensor, wait: Sequence[Addend | None], slope: Addend | None
) -> tuple[torch.Tensor, torch.Tensor]:
    dy = slope.added_to(dy) if slope else dy
    gates, ups = _finished(both, wait)
    passed, dboth = silu(gates), torch.empty_like(both)
    dgates, dups = dboth.chunk(2, dim=1)
    torch.ops.aten.silu_backward.grad_input(dy * ups, gates, grad_input=dgates)
    torch.mul(dy, passed, out=dups)
    return dboth, passed.mul_(ups)


def _finished(both: torch.Tensor, wait: Sequence[Addend | None]) -> list[torch.Tensor]:
    return [addend.added_to(part) if addend else part for part, addend in zip(both.chunk(2, dim=1), wait, strict=True)]
