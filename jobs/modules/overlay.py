"""A saved adapter of our own kinds on a base that others use too: put on for one pass, taken off after it.

Between two passes the base is the base: its weights are exchanged by their storage and exchanged back, never changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from safetensors import safe_open

from jobs.errors import UserError
from jobs.modules import bottleneck, whole
from jobs.modules.config import MODEL, TENSORS, Kind, TunedConfig
from jobs.sizes import bytes_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Resident:
    """One base in memory, with its layers and weights by the names they had before anybody wrapped a layer."""

    def __init__(self, model: PreTrainedModel, name: str, dtype: torch.dtype) -> None:
        self.model = model
        self.name = name
        self.dtype = dtype
        self.modules = dict(model.named_modules())
        self.parameters = dict(model.named_parameters())

    def overlay(self, folder: Path, config: TunedConfig) -> Overlay:
        """Read a saved adapter. Raises UserError where it does not fit this base, or this machine's memory."""
        tensors = self._whole(folder) if config.peft_type is Kind.FULL else _tensors(folder)
        made_for_another = UserError(
            f"The adapter in {folder} was made for another base model: its layers have other names or sizes than those "
            f"of {self.name}."
        )
        try:
            adapters = bottleneck.make(self.modules, config.bottleneck) if config.bottleneck else {}
            for place, adapter in adapters.items():
                start = f"{place}{bottleneck.INFIX}"
                mine = [name for name in tensors if name.startswith(start)]
                adapter.load_state_dict({name.removeprefix(start): tensors.pop(name) for name in mine})
                adapter.to(self.model.device, self.dtype).eval()
        except (KeyError, RuntimeError) as error:
            raise made_for_another from error
        for name, tensor in tensors.items():
            if name not in self.parameters or self.parameters[name].shape != tensor.shape:
                raise made_for_another
        weights = {
            name: tensor.to(self.parameters[name].device, self.parameters[name].dtype)
            for name, tensor in tensors.items()
        }
        return Overlay(self, weights, adapters)

    def _whole(self, folder: Path) -> dict[str, torch.Tensor]:
        if getattr(self.model, "is_quantized", False):
            raise UserError(
                f"{self.name} is held in 4 bits here because it would not fit otherwise, and a fully fine-tuned model "
                "cannot answer beside that. Download it and answer with it alone, or train an adapter."
            )
        needed = sum(parameter.numel() for parameter in self.parameters.values()) * self.dtype.itemsize
        on_gpu = self.model.device.type == "cuda"
        free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
        if needed > free:
            needs, there = bytes_texts(needed, free)
            raise UserError(
                f"A fully fine-tuned model is as large as its base: it needs {needs} beside "
                f"{self.name}, and {there} are free. Wait for a run to end, or choose an adapter."
            )
        return whole.read(type(self.model), folder / MODEL, self.dtype)


class Overlay:
    """A saved adapter in memory. `with overlay.on():` the base answers as it was taught, and after that as itself."""

    def __init__(
        self, resident: Resident, weights: dict[str, torch.Tensor], adapters: dict[str, bottleneck.Bottleneck]
    ) -> None:
        self._resident, self._weights, self._adapters = resident, weights, adapters
        self._undo: list[Callable[[], object]] = []
        self.whole = len(weights) == len(resident.parameters)  # a copy of everything that the base has
        replaced = {id(resident.parameters[name]) for name, tensor in weights.items() if tensor.ndim > 1}
        # Layers that compute with weights they laid out for themselves (jobs.inference.packed) must look again.
        self._laid_out = [m for m in resident.modules.values() if id(getattr(m, "weight", None)) in replaced]

    def on(self) -> Overlay:
        """What to enter. Without a `with`, on a base of its own, it stays on."""
        return self

    def __enter__(self) -> None:
        self._undo += [handle.remove for handle in bottleneck.hook(self._resident.modules, self._adapters)]
        for module in self._laid_out:
            if "forward" in vars(module):
                self._undo.append(partial(setattr, module, "forward", vars(module).pop("forward")))
        for name, tensor in self._weights.items():
            parameter = self._resident.parameters[name]
            self._undo.append(partial(setattr, parameter, "data", parameter.data))
            parameter.data = tensor

    def __exit__(self, *raised: object) -> None:
        while self._undo:
            self._undo.pop()()


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / TENSORS, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
