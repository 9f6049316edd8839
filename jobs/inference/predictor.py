"""Trained heads answering on one base model: labels, spans, answers, numbers for texts.

Each adapter has a model of its own, because a head is part of it and some kinds change what is beside them; the base's
weights are in memory once, and all models compute with them. The last few adapters stay. Ends at values
(jobs.tasks.predictions): who asks is jobs.inference.predict_child's.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from jobs import tasks
from jobs.card import AdapterCard, read_card
from jobs.data.templates import with_template
from jobs.errors import UserError
from jobs.modules.config import read_config
from jobs.modules.overlay import Resident
from jobs.spec import BaseModelRef
from jobs.tasks.predictions import Prediction
from jobs.training import heads, load
from jobs.training.objective import Setting

KEPT = 8  # adapters in memory at once, where there is room
_ROOM = 1.2  # the base's weights, and some for what is computed


@dataclass(frozen=True)
class Ready:
    """An adapter on its base, ready to be asked."""

    task: tasks.Task
    setting: Setting
    model: Any
    on: contextlib.AbstractContextManager[Any]  # puts adapters of our own kinds on the model; may be entered again
    stamp: tuple[tuple[str, int, int], ...]  # of its files: a resumed run writes new ones in their place


class Predictor:
    def __init__(self, base: BaseModelRef) -> None:
        self._base = base
        self._device = load.choose_device()
        self._tokenizer: Any = None
        self._ready: OrderedDict[Path, Ready] = OrderedDict()
        self._base_weights: dict[str, torch.Tensor] = {}  # by their names, as they were loaded first

    def knows(self, folder: Path) -> bool:
        """Whether the adapter is in memory."""
        ready = self._ready.get(folder)
        return ready is not None and ready.stamp == _stamp(folder)

    def predict(self, folder: Path, inputs: Sequence[dict[str, str]]) -> tuple[list[Prediction], Prediction | None]:
        """What the adapter in `folder` says of each input, and what could be said without looking.

        Raises UserError where the adapter, or an input, cannot be used.
        """
        ready = self.get(folder)
        with torch.inference_mode(), self._device.autocast(), ready.on:
            found = ready.task.predict(ready.model, inputs, ready.setting)
        return found, ready.task.baseline(ready.setting)

    def get(self, folder: Path) -> Ready:
        """From memory, or loaded. Raises UserError where it does not fit."""
        if not self.knows(folder):
            self._ready.pop(folder, None)
            self._make_room()
            self._ready[folder] = self._load(folder)
        self._ready.move_to_end(folder)
        return self._ready[folder]

    def _make_room(self) -> None:
        """The least used go where the memory is short for a moment's second copy of the base."""
        needed = sum(tensor.nbytes for tensor in self._base_weights.values()) * _ROOM
        while self._ready:
            if len(self._ready) < KEPT and needed < self._free():
                return
            self._ready.popitem(last=False)

    def _free(self) -> int:
        if self._device.is_cuda:
            return torch.cuda.mem_get_info()[0]
        return int(psutil.virtual_memory().available)

    def _load(self, folder: Path) -> Ready:
        stamp = _stamp(folder)
        card = read_card(folder)
        task = tasks.task(card.task)
        if self._tokenizer is None:
            self._tokenizer = load.load_tokenizer(self._base)
        setting = _setting(task, card, self._tokenizer)
        model: Any
        model, new = load.load_model(self._base, task.auto_class, task.head_config(setting), None, self._device)
        self._share(model, new)
        on: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        try:
            if own := read_config(folder):
                on = Resident(model, self._base.name, self._device.dtype).overlay(folder, own)
            else:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, folder, torch_device=str(self._device.name))
                heads.put_back(model, folder)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(
                f"The adapter in {folder} does not fit {self._base.name} ({type(error).__name__}). Was it trained on "
                "another base model?"
            ) from error
        model.eval()
        return Ready(task, setting, model, on, stamp)

    def _share(self, model: Any, new: tuple[str, ...]) -> None:
        """Let a freshly loaded model compute with the weights that are in memory already. No kind of adapter changes
        them: what it trains of them it keeps a copy of, or exchanges for a pass."""
        for name, parameter in model.named_parameters():
            if name in new:
                continue
            first = self._base_weights.setdefault(name, parameter.data)
            if first.shape == parameter.shape and first.dtype == parameter.dtype:
                parameter.data = first


def _setting(task: tasks.Task, card: AdapterCard, tokenizer: Any) -> Setting:
    params = task.Params(**card.task_params)
    tokenizer = with_template(tokenizer, params)
    return Setting(
        params=params,
        labels=card.labels,
        pad_token_id=load.pad_token_id(tokenizer),
        tokenizer=tokenizer,
        max_length=card.max_length,
        facts=card.facts,
    )


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Raises UserError where the folder is gone."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    if not files:
        raise UserError(f"The adapter's files are no longer in {folder}. Delete it and train again.")
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
