"""One pass over one pack: forward, backward, gradients gathered.

A small pass on a GPU takes longer to launch, kernel by kernel, than to compute: how small depends on the GPU, and as
much on the processor that launches. So the first passes are timed, and where launching is what they wait for, the rest
are recorded once as a CUDA graph for each of a few sizes (sizes.py), over buffers that stay where they are, and from
then on replayed with one call.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from jobs.memory.packed import LAUNCH_BOUND
from jobs.training.load import Device
from jobs.training.objective import Objective
from jobs.training.packed.model import PackedModel
from jobs.training.packed.packs import Pack
from jobs.training.packed.sizes import Size, Sizes, finely
from jobs.training.rows import Row

_OPERATIONS_A_SECOND = 3.5e14  # of the passes that are bound by launching; only to weigh padding against recording
_SECONDS_A_LAYER = 0.007  # to record a pass
_TIMED = range(2, 5)  # passes: in those before them kernels are compiled and loaded
_WAITING = 0.9  # launching takes so much of a pass that the GPU has little left to do when it is through


@dataclass
class _Recorded:
    graph: Any
    batch: dict[str, torch.Tensor]
    losses: torch.Tensor


class Passes:
    """Call it with a pack and the trained items of its whole step, for each adapter: the pack's shares of the steps'
    mean losses, [adapters], on the device; its gradients are added to the model's. To be called while the model is
    engaged.

    `objectives`: one for each adapter. `sample`: packs like those to come, `count` in all; it may end with the first
    that is not small.
    """

    def __init__(
        self,
        model: PackedModel,
        objectives: Sequence[Objective],
        device: Device,
        sample: Sequence[Pack],
        count: int,
    ) -> None:
        self._model = model
        self._objectives = objectives
        self._leaves = model.leaves
        self._device = device
        self._recorded: dict[Size, _Recorded] = {}
        self._sizes: Sizes | None = None
        self._passes = 0
        self._launching = 1.0  # the least share of a timed pass that launching took
        self.once_seconds = 0.0  # in all: what no later pass takes. Recording, and launching before it
        self._whole_answers = weighs_whole_answers(objectives)
        # Recorded passes have memory of their own, so beside larger ones they would cost more than they save.
        if can_record(model, objectives, device) and all(is_small(pack, model) for pack in sample):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device.name)
            self._sizes = Sizes(
                sample,
                count,
                token_cost=2 * model.operations_a_token / _OPERATIONS_A_SECOND,
                size_cost=_SECONDS_A_LAYER * model.layers,
                longest=model.longest,
            )

    def __call__(self, pack: Pack, items: Sequence[int]) -> torch.Tensor:
        number, self._passes = self._passes, self._passes + 1
        batch, longest = arrays(pack, items), self._model.longest
        if self._sizes and number >= _TIMED.stop and self._launching > _WAITING:
            return self._replay(batch, self._sizes.of(pack))
        size = finely(pack, longest, on_gpu=self._device.is_cuda, whole_answers=self._whole_answers)
        batch = filled(batch, size, longest)
        if self._sizes and number < _TIMED.stop:
            return self._tried(batch, timed=number in _TIMED)
        return self._compute(self._on_device(self._ready(batch)), pack.rows)

    def _tried(self, batch: dict[str, np.ndarray], *, timed: bool) -> torch.Tensor:
        """One of the first passes, after which it is known whether the others are recorded."""
        if timed:
            torch.cuda.synchronize()
        began = time.perf_counter()
        losses = self._compute(self._on_device(self._ready(batch)))
        launched = time.perf_counter()
        if timed:
            torch.cuda.synchronize()
            self._launching = min(self._launching, (launched - began) / (time.perf_counter() - began))
        self.once_seconds += time.perf_counter() - began
        return losses

    def _replay(self, batch: dict[str, np.ndarray], size: Size) -> torch.Tensor:
        ready = self._ready(filled(batch, size, self._model.longest))
        if size not in self._recorded:
            self._recorded[size] = self._record(ready)
        recorded = self._recorded[size]
        for name, tensor in ready.items():
            recorded.batch[name].copy_(tensor, non_blocking=True)
        recorded.graph.replay()
        return recorded.losses.clone()

    def _compute(self, batch: dict[str, torch.Tensor], rows: Sequence[Row] = ()) -> torch.Tensor:
        self._leaves.begin_pass()
        losses = self._losses(batch, rows)
        losses.sum().backward()
        self._leaves.end_pass()
        return losses.detach()

    def _losses(self, batch: dict[str, torch.Tensor], rows: Sequence[Row]) -> torch.Tensor:
        losses, shares = self._model.losses(batch), batch["shares"]
        if len(self._objectives) == 1:
            return self._objectives[0].packed_loss(losses, batch["texts"], rows) * shares
        owners = batch["adapters"][batch["kept"]]
        return torch.zeros_like(shares).index_add(0, owners, losses) * shares

    def _record(self, batch: dict[str, torch.Tensor]) -> _Recorded:
        """Recording computes nothing. What cannot be recorded, compiling kernels and waking libraries up, was done in
        the passes before."""
        began = time.perf_counter()
        on_device = self._on_device(batch)
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            losses = self._compute(on_device)
        current.wait_stream(self._stream)
        self.once_seconds += time.perf_counter() - began
        return _Recorded(graph, on_device, losses)

    def _ready(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """In the host's memory, from where a GPU can fetch it by itself."""
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        brought = self._model.brought(tensors["input_ids"])
        if self._device.is_cuda:
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return tensors | brought

    def _on_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self._device.name, non_blocking=True) for name, tensor in batch.items()}


def weighs_whole_answers(objectives: Sequence[Objective]) -> bool:
    """Such a task reads its numbers here in between, which no graph can."""
    return any(each.task.sequences > 1 for each in objectives)


def can_record(model: PackedModel, objectives: Sequence[Objective], device: Device) -> bool:
    return device.is_cuda and model.recordable and not weighs_whole_answers(objectives)


def is_small(pack: Pack, model: PackedModel) -> bool:
    """Whether launching it may take longer than computing it."""
    return pack.tokens * model.operations_a_token <= LAUNCH_BOUND * model.layers


def arrays(pack: Pack, items: Sequence[int]) -> dict[str, np.ndarray]:
    """What PackedModel.losses takes, and `shares` [adapters]: what a token's loss counts in its step's mean."""
    whose = {} if pack.adapters is None else {"adapters": pack.adapters}
    return whose | {
        "input_ids": pack.input_ids,
        "positions": pack.positions,
        "ends": pack.ends,
        "kept": pack.kept,
        "targets": pack.targets,
        "texts": pack.texts,
        "shares": np.array([1 / count for count in items], dtype=np.float32),
    }


def filled(batch: dict[str, np.ndarray], size: Size, longest: int) -> dict[str, np.ndarray]:
    """The same, exactly as large as `size`: documents of at most `longest` tokens, of which none is trained, fill the
    rest, and empty ones stand behind them."""
    tokens, kept = len(batch["input_ids"]), len(batch["kept"])
    rest = size.tokens - tokens
    fillers = [min(longest, rest - begin) for begin in range(0, rest, longest)]
    ends = np.full(size.documents + 1, size.tokens, dtype=np.int32)
    known = [*batch["ends"], *(tokens + np.cumsum(fillers, dtype=np.int64))]
    ends[: len(known)] = known
    padded = {name: np.pad(batch[name], (0, rest)) for name in ("input_ids", "adapters") if name in batch}
    return (
        batch
        | padded
        | {
            "positions": np.concatenate([batch["positions"], *(np.arange(length) for length in fillers)]),
            "ends": ends,
            "kept": np.pad(batch["kept"], (0, size.kept - kept)),
            "targets": np.pad(batch["targets"], (0, size.kept - kept), constant_values=-1),
            "texts": np.pad(batch["texts"], (0, size.kept - kept)),
        }
    )
