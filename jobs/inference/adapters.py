"""Adapters on one resident base: attached by name when they are first asked for, the least used let go.

Plain LoRA goes into the stacked layers (jobs.inference.stacked), any number in one batch. The kinds that PEFT lacks are
put on for a pass and taken off after it (jobs.modules.overlay), one adapter a batch. Every other kind goes through
PEFT, one adapter at a time and one row a batch, because only LoRA may share a forward pass (PEFT takes `adapter_names`
for some other kinds and ignores it: base rows then get the adapter's answer).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.errors import UserError
from jobs.inference.load import Loaded
from jobs.inference.stacked import ORDINARY_STARTS, Pairs, Plan, StackedLora, lay_out, read_config
from jobs.modules.config import Kind
from jobs.modules.config import read_config as own_config
from jobs.modules.overlay import Overlay, Resident

KEPT = 8  # adapters in memory at once


@dataclass(frozen=True)
class Adapter:
    folder: Path
    fingerprint: str  # SHA-256 of its weights; of their SHA-256s where they are several files
    stamp: tuple[tuple[int, int], ...]  # size and time of its files: a resumed run writes new ones in their place
    pairs: Pairs | None = None  # plain LoRA's matrices
    positions: int = 0  # that it takes before the conversation
    overlay: Overlay | None = None  # of a kind that PEFT lacks; neither: through PEFT


@dataclass(frozen=True)
class Group:
    """Who answers the rows of one batch: each row's LoRA, one overlay for all, or one PEFT adapter for its only row."""

    plan: Plan
    rows: tuple[Pairs, ...] = ()
    overlay: Overlay | None = None
    peft: Adapter | None = None

    def keep(self, indices: Sequence[int]) -> Group:
        """The group of the rows that go on."""
        if self.peft or self.overlay:
            return self
        rows = tuple(self.rows[index] for index in indices)
        return Group(lay_out(rows), rows)


class Adapters:
    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._stacked = StackedLora(loaded.model)
        self._resident = Resident(loaded.model, loaded.name, loaded.dtype)
        self._known: OrderedDict[Path, Adapter] = OrderedDict()
        self._bare = _Bare(loaded.model)
        self._peft: Any = None  # the PeftModel round the base, where one is attached
        self._attached: Adapter | None = None

    def get(self, folder: Path) -> Adapter:
        """Read it, or take it from memory. Raises UserError where it cannot be used."""
        try:
            weights = sorted(folder.rglob("*.safetensors")) or [folder / "adapter_model.safetensors"]
            stamp = tuple((stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, weights))
            adapter = self._known.get(folder)
            if adapter is None or adapter.stamp != stamp:
                self._known.pop(folder, None)
                adapter = self._read(folder, weights, stamp)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"The adapter in {folder} cannot be read ({type(error).__name__}: {error}).") from error
        self._check_sizes(adapter)
        self._known[folder] = adapter
        self._known.move_to_end(folder)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)  # a batch that still uses it holds its matrices itself
        return adapter

    def _read(self, folder: Path, weights: Sequence[Path], stamp: tuple[tuple[int, int], ...]) -> Adapter:
        fingerprint = _fingerprint(weights)
        if own := own_config(folder):
            if own.peft_type is Kind.FULL:  # as large as the base: the last one makes room
                for known in [path for path, each in self._known.items() if each.overlay and each.overlay.whole]:
                    del self._known[known]
            return Adapter(folder, fingerprint, stamp, overlay=self._resident.overlay(folder, own))
        config = read_config(folder)
        pairs = self._stacked.read(folder, config, self._loaded.device, self._loaded.dtype)
        if pairs is None and config.get("init_lora_weights", True) not in ORDINARY_STARTS:
            raise UserError(
                f"The adapter in {folder} was saved with init_lora_weights={config['init_lora_weights']!r}, "
                "which changes the base model as it loads. Convert it to plain LoRA first."
            )
        return Adapter(folder, fingerprint, stamp, pairs, config.get("num_virtual_tokens") or 0)

    def _check_sizes(self, adapter: Adapter) -> None:
        for name, (down, up) in (adapter.pairs or {}).items():
            module = self._loaded.model.get_submodule(name)
            sizes = (getattr(module, "in_features", down.shape[0]), getattr(module, "out_features", up.shape[1]))
            if sizes != (down.shape[0], up.shape[1]):
                raise UserError(
                    f"The adapter in {adapter.folder} was made for another base model: its {name} has other sizes than "
                    f"that of {self._loaded.name}."
                )

    def forward(self, group: Group, *, first: bool, **inputs: Any) -> Any:
        """One pass of the model with the group's adapters. `first`: the batch's cache is still empty."""
        if group.peft:
            self._attach(group.peft)
            # Virtual tokens, where the kind has them, go into the cache with the first pass and stay there.
            return (self._peft if first else self._peft.base_model)(**inputs)
        self._stacked.active = group.plan
        try:
            with (
                self._peft.disable_adapter() if self._peft else contextlib.nullcontext(),
                group.overlay.on() if group.overlay else contextlib.nullcontext(),
            ):
                return self._loaded.model(**inputs)
        finally:
            self._stacked.active = {}

    def _attach(self, adapter: Adapter) -> None:
        if self._attached is adapter:
            return
        from peft import PeftModel

        self._peft = self._attached = None
        self._bare.restore()
        try:
            peft = PeftModel.from_pretrained(self._loaded.model, adapter.folder, torch_device=str(self._loaded.device))
        except (RuntimeError, ValueError, KeyError, AttributeError) as error:
            self._bare.restore()  # PEFT stops in the middle
            raise UserError(
                f"The adapter in {adapter.folder} does not fit {self._loaded.name}: it was made for another base "
                f"model, or by another version of PEFT ({type(error).__name__}: {str(error).splitlines()[0]})."
            ) from error
        peft.eval()
        self._peft, self._attached = peft, adapter


class _Bare:
    """What stood where before any adapter came: PEFT puts its layers round the base's, and cannot take away all kinds,
    nor what it had put when it fails."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._children = [(parent, dict(parent._modules)) for parent in model.modules()]
        self._model = model

    def restore(self) -> None:
        for parent, children in self._children:
            if parent._modules != children:
                parent._modules.clear()
                parent._modules.update(children)
        self._model.__dict__.pop("peft_config", None)


def together(adapters: Sequence[Adapter | None]) -> list[tuple[Group, list[int]]]:
    """The batches for rows with these adapters (None: bare base), each with the indices of its rows in batch order."""
    stacked = [index for index, adapter in enumerate(adapters) if adapter is None or adapter.pairs is not None]
    overlaid: dict[Path, list[int]] = {}
    stacked.sort(key=lambda index: adapters[index] is not None)  # bare rows first, as lay_out wants
    groups = []
    if stacked:
        rows = tuple((adapters[index].pairs or {}) if adapters[index] else {} for index in stacked)  # type: ignore[union-attr]
        groups.append((Group(lay_out(rows), rows), stacked))
    for index, adapter in enumerate(adapters):
        if adapter and adapter.overlay:
            overlaid.setdefault(adapter.folder, []).append(index)
        elif adapter and adapter.pairs is None:
            groups.append((Group({}, peft=adapter), [index]))
    for members in overlaid.values():
        groups.append((Group({}, overlay=adapters[members[0]].overlay), members))  # type: ignore[union-attr]
    return groups


def _fingerprint(files: Sequence[Path]) -> str:
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
