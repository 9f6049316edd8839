"""Bottleneck adapters: a narrow two-layer network behind a sublayer's output, added to it (Houlsby et al. 2019).

Placed by forward hooks on the linear layers in which attention and MLP end, before the block's own addition: after both
(Houlsby et al. 2019, arXiv:1902.00751) or after the MLP alone (Pfeiffer et al. 2020, arXiv:2005.00052). Which layers
those are is read from names (jobs.methods.bottleneck).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from jobs.modules.config import BottleneckConfig

INFIX = ".adapter."  # between a place's name and its adapter's own parameters, in saved files
_NONLINEARITIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


class Bottleneck(torch.nn.Module):
    """x + up(f(down(x))) over the last dimension. `up` begins at zero: an untrained adapter changes nothing."""

    def __init__(self, width: int, config: BottleneckConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.down = torch.nn.Linear(width, config.size, device=device)
        self.up = torch.nn.Linear(config.size, width, device=device)
        self.dropout = torch.nn.Dropout(config.dropout)
        self._nonlinearity = _NONLINEARITIES[config.nonlinearity]
        torch.nn.init.zeros_(self.down.bias)
        torch.nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] to the same, in x's own precision; computed in the adapter's (or autocast's)."""
        added = self.up(self._nonlinearity(self.down(self.dropout(x.to(self.down.weight.dtype)))))
        return x + added.to(x.dtype)


def width_after(module: torch.nn.Module) -> int:
    """Numbers a token that a linear layer puts out."""
    return int(module.out_features if hasattr(module, "out_features") else module.nf)  # type: ignore[arg-type]


def make(
    modules: Mapping[str, torch.nn.Module], config: BottleneckConfig, device: torch.device | None = None
) -> dict[str, Bottleneck]:
    """An untrained adapter for each place, where the place's layer is. `modules`: the base's, by name.

    Raises KeyError with the name of a place that the model does not have.
    """
    return {place: Bottleneck(width_after(modules[place]), config, device) for place in config.places}


def hook(
    modules: Mapping[str, torch.nn.Module],
    adapters: Mapping[str, Bottleneck],
    enabled: Callable[[], bool] = lambda: True,
) -> list[torch.utils.hooks.RemovableHandle]:
    """Let each adapter work on what its place puts out, for as long as `enabled`."""

    def behind(adapter: Bottleneck) -> Callable[..., torch.Tensor]:
        def run(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
            return adapter(output) if enabled() else output

        return run

    return [modules[place].register_forward_hook(behind(adapter)) for place, adapter in adapters.items()]
