"""Linear layers on a CPU with their weights laid out once for oneDNN: small batches cost little more than one row.

The plain layer multiplies row by row when the batch is small, so that a second pane costs as much as the first. Packed,
two rows take about the time of one, and each row's numbers are the same whatever else is in the batch, to the last
bit. What this costs is a second copy of the weights; the first one stays in the file's cache, from where the system
may take it back. Only 32-bit floats: it was not tried with others.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch

_ROOM = 1.25  # the copy, and some to compute with


def pack(model: torch.nn.Module) -> bool:
    """Let every plain linear layer compute with packed weights. False, and nothing changed, where that cannot be."""
    layers = [
        module
        for module in model.modules()
        if type(module) is torch.nn.Linear
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    ]
    size = sum(layer.weight.nbytes for layer in layers)
    if not layers or not _works() or size * _ROOM > psutil.virtual_memory().available:
        return False
    with torch.inference_mode():
        for layer in layers:
            layer.forward = _forward(layer)  # type: ignore[method-assign]
    return True


def _forward(layer: torch.nn.Linear) -> Any:
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight)
    bias, multiply = layer.bias, torch.ops.mkldnn._linear_pointwise

    def forward(x: torch.Tensor) -> torch.Tensor:
        return multiply(x, packed, bias, "none", [], "")

    return forward


def _works() -> bool:
    """torch keeps these operations for its compiler and promises nothing: try them before they are trusted."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        layer = torch.nn.Linear(48, 80)
        x = torch.randn(2, 3, 48)
        with torch.inference_mode():
            return torch.allclose(_forward(layer)(x), layer(x), atol=1e-4)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
