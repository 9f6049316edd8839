"""One pass over one pack: forward, backward, gradients gathered.

A small pass on a GPU takes longer to launch, kernel by kernel, than to compute. Those are recorded once as a CUDA graph
for each size, over buffers that stay where they are, and from then on replayed with one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from jobs.training.load import Device
from jobs.training.packed.model import PackedModel
from jobs.training.packed.packs import Pack

_LAUNCH_BOUND = 2.5e13  # operations of a forward pass: fewer are computed in less time than the kernels take to launch
_SIZES_AN_OCTAVE = 16  # padding costs 3 % on average, and a run meets few sizes
_SMALLEST = 128  # tokens


@dataclass
class _Recorded:
    graph: Any
    batch: dict[str, torch.Tensor]
    loss: torch.Tensor


class Passes:
    """Call it with a pack and the trained items of its whole step: the pack's share of the step's mean loss, a scalar
    on the device; its gradients are added to the model's. To be called while the model is engaged."""

    def __init__(self, model: PackedModel, device: Device) -> None:
        self._model = model
        self._weights = model.weights
        self._device = device
        self._recorded: dict[tuple[int, int, int], _Recorded] = {}
        self._pool = self._stream = None
        if device.is_cuda and model.recordable:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device.name)

    def __call__(self, pack: Pack, items: int) -> torch.Tensor:
        if self._stream is None or pack.tokens * self._model.operations_a_token > _LAUNCH_BOUND:
            return self._compute(self._on_device(arrays(pack, items)))
        return self._replay(arrays(pack, items, self._model.longest))

    def _compute(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self._weights.begin_pass()
        loss = self._model.losses(batch).sum() * batch["share"]
        loss.backward()
        self._weights.end_pass()
        return loss.detach()

    def _replay(self, batch: dict[str, np.ndarray]) -> torch.Tensor:
        size = (len(batch["input_ids"]), len(batch["ends"]), len(batch["kept"]))
        recorded = self._recorded.get(size)
        if recorded is None:
            return self._record(size, self._on_device(batch))
        for name, array in batch.items():
            recorded.batch[name].copy_(torch.from_numpy(array).pin_memory(), non_blocking=True)
        recorded.graph.replay()
        return recorded.loss.clone()

    def _record(self, size: tuple[int, int, int], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute this pass as it is (what must be compiled, is), then record it, which computes nothing."""
        assert self._stream
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            loss = self._compute(batch).clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            recorded_loss = self._compute(batch)
        current.wait_stream(self._stream)
        self._recorded[size] = _Recorded(graph, batch, recorded_loss)
        return loss

    def _on_device(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if not self._device.is_cuda:
            return tensors
        return {name: t.pin_memory().to(self._device.name, non_blocking=True) for name, t in tensors.items()}


def arrays(pack: Pack, items: int, filler: int | None = None) -> dict[str, np.ndarray]:
    """What PackedModel.losses takes, and `share` []: what a token's loss counts in the step's mean.

    With `filler` rounded up to one of few sizes: documents of at most so many tokens, of which none is trained, fill
    the rest, and empty ones stand behind them.
    """
    found = {
        "input_ids": pack.input_ids,
        "positions": pack.positions,
        "ends": pack.ends,
        "kept": pack.kept,
        "targets": pack.targets,
        "share": np.array(1 / items, dtype=np.float32),
    }
    if filler is None:
        return found
    tokens = rounded(pack.tokens)
    rest = tokens - pack.tokens
    fillers = [min(filler, rest - begin) for begin in range(0, rest, filler)]
    documents = len(pack.ends) + len(fillers)
    ends = np.full(16 * -(-documents // 16), tokens, dtype=np.int32)
    ends[:documents] = [*pack.ends, *(pack.tokens + np.cumsum(fillers))]
    kept = min(tokens, rounded(len(pack.kept)))
    found["input_ids"] = np.pad(pack.input_ids, (0, rest))
    found["positions"] = np.concatenate([pack.positions, *(np.arange(length) for length in fillers)])
    found["ends"] = ends
    found["kept"] = np.pad(pack.kept, (0, kept - len(pack.kept)), mode="edge")
    found["targets"] = np.pad(pack.targets, (0, kept - len(pack.kept)), constant_values=-1)
    return found


def rounded(count: int) -> int:
    """The next of the sizes that passes are recorded for."""
    if count <= _SMALLEST:
        return _SMALLEST
    step = max(1, 1 << (count - 1).bit_length() - 1) // _SIZES_AN_OCTAVE
    return -(-count // step) * step
