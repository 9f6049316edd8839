"""Layers that keep their input and nothing else, and are computed once more on the way back.

Our own layers leave out there what only the layer above needed: the product down, more than a quarter of a layer. Where
memory is very short the inputs wait in the host's memory, and travel while other layers are computed.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from jobs.training.packed.layers import FusedLayer, Positions


class Recomputed:
    """A layer in its place: x [tokens, hidden] to [tokens, hidden]."""

    def __init__(self, layer: FusedLayer, host: HostMemory | None = None) -> None:
        self._layer, self._host = layer, host

    def __call__(self, x: torch.Tensor, at: Positions) -> torch.Tensor:
        return _Recompute.apply(x, self._layer, at, self._host, *self._layer.leaves)  # type: ignore[no-any-return]


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: FusedLayer, at: Positions, host: HostMemory | None, *leaves: torch.Tensor
    ) -> torch.Tensor:
        ctx.layer, ctx.at, ctx.host = layer, at, host
        if host:
            ctx.place = host.put(x)
        else:
            ctx.save_for_backward(x)
        return layer(x, at)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        kept = ctx.host.take(ctx.place) if ctx.host else ctx.saved_tensors[0]
        x = kept.detach().requires_grad_(ctx.needs_input_grad[0])
        with torch.enable_grad(), _keeping(ctx.layer):
            y = ctx.layer(x, ctx.at, whole=False)
        asked = [each for each in (x, *ctx.layer.leaves) if each.requires_grad]
        slopes = iter(torch.autograd.grad(y, asked, dy))
        dx = next(slopes) if x.requires_grad else None
        return dx, None, None, None, *slopes


@contextlib.contextmanager
def _keeping(layer: FusedLayer) -> Iterator[None]:
    """4-bit weights that are unpacked in here are not unpacked once more for the slopes."""
    for group in layer.groups:
        group.frozen.keeps = True
    try:
        yield
    finally:
        for group in layer.groups:
            group.frozen.keeps = False


class HostMemory:
    """Tensors on their way to page-locked memory and back, on a stream of their own: last in, first out, and the next
    one is sent for while one is used.

    The processor launches far ahead of the GPU, and what is still on its way cannot be used again: so it waits here,
    a few tensors behind, or it would fill the memory that is to be saved.
    """

    _AHEAD = 2  # tensors

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._away: list[torch.Tensor] = []
        self._coming: torch.Tensor | None = None
        self._here: torch.Tensor | None = None
        # Tensors that are still copied or computed with, and when that is done.
        self._busy: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def put(self, x: torch.Tensor) -> int:
        """The number to `take` it back by."""
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            host.copy_(x, non_blocking=True)
        self._hold(x, self._stream)
        self._away.append(host)
        return len(self._away)

    def take(self, number: int) -> torch.Tensor:
        """To be used until the next one is taken, on the current stream."""
        assert number == len(self._away), "layers go back in the order they came, the other way round"
        current = torch.cuda.current_stream()
        if self._here is not None:
            self._hold(self._here, current)
        here = self._here = self._begin() if self._coming is None else self._coming
        current.wait_stream(self._stream)
        self._away.pop()
        self._coming = self._begin() if self._away else None
        if not self._away:  # the last one: nobody asks for it to be let go
            for held in (here, *(tensor for tensor, _ in self._busy)):
                held.record_stream(current)
            self._here = None
            self._busy.clear()
        return here

    def _begin(self) -> torch.Tensor:
        with torch.cuda.stream(self._stream):
            return self._away[-1].to("cuda", non_blocking=True)

    def _hold(self, x: torch.Tensor, stream: torch.cuda.Stream) -> None:
        """Until what `stream` was given so far is done."""
        self._busy.append((x, stream.record_event()))
        if len(self._busy) > self._AHEAD:
            self._busy.popleft()[1].synchronize()
