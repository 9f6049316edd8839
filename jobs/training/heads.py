"""A new head is trained by every method, and travels with what the method saves.

PEFT trains the heads it knows by name and copies them into the adapter; what a method leaves frozen although the base
model's files do not have it (a pooler, any head beside virtual tokens) is trained here in place and kept in a file of
its own. Random numbers that stay random would spoil the model without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FILE = "head.safetensors"
_NORM_COPY = ".ln_tuning_layers."  # LN tuning trains a copy of every norm, a new head's too


def train(model: Any, new: tuple[str, ...]) -> tuple[str, ...]:
    """Make every new parameter trainable, in 32 bits, where the attached method did not; the names of those.

    `new`: names in the base model, before the method was attached (jobs.training.load.load_model).
    """
    import torch

    left = left_frozen(model, new)
    for parameter in left.values():
        parameter.requires_grad = True
    for parameter in model.parameters():
        if new and parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()  # a copy that PEFT made of a 16-bit head
    return tuple(left)


def left_frozen(model: Any, new: tuple[str, ...]) -> dict[str, Any]:
    """The new parameters, by name, that the method neither trains nor replaced with a copy that it trains."""
    parameters = _plainly_named(model)
    copied = {name.partition(_NORM_COPY)[0] for name in parameters if _NORM_COPY in name}
    return {
        name: parameter
        for name, parameter in parameters.items()
        if name in new and not parameter.requires_grad and name.rpartition(".")[0] not in copied
    }


def _plainly_named(model: Any) -> dict[str, Any]:
    """The base model's own parameters under the names they had before a method was attached; none that has a copy."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.get_base_model().named_parameters()
        if ".original_module." not in name and ".modules_to_save." not in name
    }


def save(model: Any, names: tuple[str, ...], folder: Path) -> None:
    """Write what `train` returned the names of; nothing where there is none."""
    from safetensors.torch import save_file

    if names:
        parameters = _plainly_named(model)
        save_file({name: parameters[name].detach().cpu().contiguous() for name in names}, str(folder / FILE))


def put_back(model: Any, folder: Path) -> None:
    """Read what `save` wrote into a model to which the adapter is attached; nothing where there is none."""
    import torch
    from safetensors.torch import load_file

    if not (folder / FILE).is_file():
        return
    parameters = _plainly_named(model)
    with torch.no_grad():
        for name, value in load_file(str(folder / FILE)).items():
            parameters[name].data = value.to(parameters[name].device)
