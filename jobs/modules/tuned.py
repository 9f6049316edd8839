"""TunedModel: a base model with bottleneck adapters, or with weights of its own trained in place.

Has PeftModel's surface as far as Graft uses it, so that training, checkpoints and answers need not know the difference.
Ends where a saved adapter is put on a base that must stay as it is: jobs.modules.overlay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from jobs.errors import UserError
from jobs.modules import bottleneck, readme, whole
from jobs.modules.config import MODEL, TENSORS, BottleneckConfig, Kind, TunedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Layers that a task puts at the model's end, trained and saved with every adapter: the names that PEFT knows them by.
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


class TunedModel(torch.nn.Module):
    """Trained weights are in 32 bits, whatever the base is held in: a step of the optimizer is smaller than a 16-bit
    number can be told from its neighbour.
    """

    _hf_peft_config_loaded = True  # transformers asks this of a quantized base before it trains beside it

    def __init__(
        self,
        base: PreTrainedModel,
        kind: Kind,
        task_type: str,
        *,
        trains: Callable[[str], bool] = lambda name: False,
        adapters: BottleneckConfig | None = None,
        saved_narrow: bool = False,
    ) -> None:
        """`trains` picks the base's own parameters by name; a new head's are trained in any case. `saved_narrow`: a
        whole model is saved in the precision of the base's files, not in the 32 bits that it is trained in."""
        super().__init__()
        heads = _HEADS.get(task_type, ())
        config: Any = base.config
        self.adapter_config = TunedConfig(
            peft_type=kind,
            task_type=task_type,
            base_model_name_or_path=base.name_or_path,
            revision=getattr(config, "_commit_hash", None),
            labels=config.num_labels if heads else None,
            dtype=whole.stored_dtype(base) if kind is Kind.FULL and saved_narrow else "float32",
            bottleneck=adapters,
        )
        self.base: Any = base
        self._heads = {name for name, _ in base.named_parameters() if any(part in heads for part in name.split("."))}
        self._originals: dict[str, torch.Tensor] = {}  # what a disabled adapter gives back
        self._precision: dict[str, torch.dtype] = {}  # of the base, where training holds another
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(name in self._heads or trains(name))
            if not parameter.requires_grad:
                continue
            self._widen(name, parameter)
            if kind is not Kind.FULL:  # a second copy of a whole model is too dear
                self._originals[name] = parameter.detach().clone()
            # A norm computes with both its vectors in one precision.
            owner = name.rpartition(".")[0]
            for beside, vector in base.get_submodule(owner).named_parameters(prefix=owner, recurse=False):
                if vector.ndim == 1 and not vector.requires_grad:
                    self._widen(beside, vector)
        self.adapters = torch.nn.ModuleDict()
        self._enabled = True
        if adapters:
            modules = dict(base.named_modules())
            made = bottleneck.make(modules, adapters, base.device)
            self.adapters.update({_key(place): adapter for place, adapter in made.items()})
            bottleneck.hook(modules, made, lambda: self._enabled)

    def _widen(self, name: str, parameter: torch.nn.Parameter) -> None:
        if parameter.dtype != torch.float32:
            self._precision.setdefault(name, parameter.dtype)
            parameter.data = parameter.data.float()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":  # not built yet
                raise
            return getattr(self.base, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.base.generate(*args, **kwargs)

    def get_base_model(self) -> PreTrainedModel:
        return self.base

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Trained, and all. A base held in 4 bits counts its weights, not the bytes that they are packed in."""
        added = sum(parameter.numel() for parameter in self.adapters.parameters())
        own = sum(parameter.numel() for parameter in self.base.parameters() if parameter.requires_grad)
        return own + added, self.base.num_parameters() + added

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base's answers inside the block. A fully fine-tuned model has no base left (Method.keeps_base)."""
        assert self.adapter_config.peft_type is not Kind.FULL
        parameters = dict(self.base.named_parameters())
        trained = {name: parameters[name].data for name in self._originals}
        self._enabled = False
        try:
            for name, tensor in self._originals.items():
                parameters[name].data = tensor  # exchanged, not copied
            yield
        finally:
            self._enabled = True
            for name, tensor in trained.items():
                parameters[name].data = tensor

    def merge_and_unload(self) -> PreTrainedModel:
        """The base as a plain model with what was trained in it. Bottleneck adapters are no part of any of its layers.

        Raises UserError for those.
        """
        if self.adapters:
            raise UserError("Bottleneck adapters cannot be merged: they are layers of their own, with a bend in them.")
        parameters = dict(self.base.named_parameters())
        for name, dtype in self._precision.items():
            parameters[name].data = parameters[name].data.to(dtype)
        return self.base

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """The files that jobs.modules.config names, with a README that says how to use them without Graft."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.adapter_config.peft_type is Kind.FULL:
            whole.save(self.base, folder / MODEL, self.adapter_config.dtype)
        else:
            tensors = {name: tensor.detach().contiguous() for name, tensor in self._trained().items()}
            save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
        (folder / "README.md").write_text(readme.text(self.adapter_config), encoding="utf-8")
        self.adapter_config.write(folder)

    def _trained(self) -> dict[str, torch.Tensor]:
        """What is trained, by the names it is saved under."""
        found: dict[str, torch.Tensor] = {n: p for n, p in self.base.named_parameters() if p.requires_grad}
        for key, adapter in self.adapters.items():
            place = key.replace("/", ".")
            found |= {f"{place}{bottleneck.INFIX}{name}": parameter for name, parameter in adapter.named_parameters()}
        return found


def _key(place: str) -> str:
    """A module's name may hold no dot."""
    return place.replace(".", "/")
