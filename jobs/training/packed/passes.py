"""One pass over one pack: forward, backward, gradients gathered.

A small pass on a GPU takes longer to launch, kernel by kernel, than to compute. Those are recorded once as a CUDA graph
for each of a few sizes (sizes.py), over buffers that stay where they are, and from then on replayed with one call.
"""

from __future__ import annotations

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
from jobs.training.packed.sizes import Size, Sizes
from jobs.training.rows import Row

_OPERATIONS_A_SECOND = 1.5e14  # of the passes that are bound by launching; only to weigh padding against recording
_SECONDS_A_LAYER = 0.006  # to record a pass


@dataclass
class _Recorded:
    graph: Any
    batch: dict[str, torch.Tensor]
    loss: torch.Tensor


class Passes:
    """Call it with a pack and the trained items of its whole step: the pack's share of the step's mean loss, a scalar
    on the device; its gradients are added to the model's. To be called while the model is engaged.

    `sample`: packs like those to come, `count` in all.
    """

    def __init__(
        self, model: PackedModel, objective: Objective, device: Device, sample: Sequence[Pack], count: int
    ) -> None:
        self._model = model
        self._objective = objective
        self._weights = model.weights
        self._device = device
        self._recorded: dict[Size, _Recorded] = {}
        self._sizes: Sizes | None = None
        small = [pack for pack in sample if self._is_small(pack)]
        # What weighs whole answers reads its numbers here in between, which no graph can.
        if device.is_cuda and model.recordable and objective.task.sequences == 1:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device.name)
            self._sizes = Sizes(
                small,
                count,
                token_cost=2 * model.operations_a_token / _OPERATIONS_A_SECOND,
                size_cost=_SECONDS_A_LAYER * model.layers,
                longest=model.longest,
            )

    def __call__(self, pack: Pack, items: int) -> torch.Tensor:
        if self._sizes is None or not self._is_small(pack):
            return self._compute(self._on_device(arrays(pack, items)), pack.rows)
        size = self._sizes.of(pack)
        batch = filled(arrays(pack, items), size, self._model.longest)
        if size not in self._recorded:
            first = not self._recorded
            self._recorded[size] = self._record(batch, warm_up=first)
        recorded = self._recorded[size]
        for name, array in batch.items():
            recorded.batch[name].copy_(torch.from_numpy(array).pin_memory(), non_blocking=True)
        recorded.graph.replay()
        return recorded.loss.clone()

    def _is_small(self, pack: Pack) -> bool:
        return pack.tokens * self._model.operations_a_token <= LAUNCH_BOUND

    def _compute(self, batch: dict[str, torch.Tensor], rows: Sequence[Row] = ()) -> torch.Tensor:
        self._weights.begin_pass()
        loss = self._objective.packed_loss(self._model.losses(batch), batch["texts"], rows) * batch["share"]
        loss.backward()
        self._weights.end_pass()
        return loss.detach()

    def _record(self, batch: dict[str, np.ndarray], warm_up: bool) -> _Recorded:
        """Recording computes nothing. Before the first one everything runs once, since kernels are compiled and
        libraries wake up on their first call, which cannot be recorded; what that adds to the gradients is undone."""
        on_device = self._on_device(batch)
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        if warm_up:
            with torch.cuda.stream(self._stream):
                before = self._weights.gradients.clone()
                self._compute(on_device)
                self._weights.gradients.copy_(before)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            loss = self._compute(on_device)
        current.wait_stream(self._stream)
        return _Recorded(graph, on_device, loss)

    def _on_device(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if not self._device.is_cuda:
            return tensors
        return {name: t.pin_memory().to(self._device.name, non_blocking=True) for name, t in tensors.items()}


def arrays(pack: Pack, items: int) -> dict[str, np.ndarray]:
    """What PackedModel.losses takes, and `share` []: what a token's loss counts in the step's mean."""
    return {
        "input_ids": pack.input_ids,
        "positions": pack.positions,
        "ends": pack.ends,
        "kept": pack.kept,
        "targets": pack.targets,
        "texts": pack.texts,
        "share": np.array(1 / items, dtype=np.float32),
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
    return batch | {
        "input_ids": np.pad(batch["input_ids"], (0, rest)),
        "positions": np.concatenate([batch["positions"], *(np.arange(length) for length in fillers)]),
        "ends": ends,
        "kept": np.pad(batch["kept"], (0, size.kept - kept)),
        "targets": np.pad(batch["targets"], (0, size.kept - kept), constant_values=-1),
        "texts": np.pad(batch["texts"], (0, size.kept - kept)),
    }
