"""AdamW whose two moments take less of the GPU: in 8 bits, in pages that move to the host, or both.

The arithmetic is bitsandbytes' (Dettmers et al. 2022: blocks of 256 numbers with a scale each). Here is which
parameters keep 32 bits, and how the moments come back from a checkpoint. Tensors of fewer than 4,096 numbers keep 32
bits anyway, and of fewer than 100,000 are never paged. What a device cannot do is said before Start
(jobs.service.checking).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from bitsandbytes.optim import AdamW

_MOMENTS = ("state1", "state2")


def embeddings(model: torch.nn.Module) -> list[torch.Tensor]:
    """The embeddings' weights. Few of their rows have a gradient in a step, which 8 bits serve badly: the paper keeps
    them in 32, and so does transformers."""
    return [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]


class HeldAdamW(AdamW):
    """AdamW with the moments `narrow` (in 8 bits), `paged`, or both; those of `exact` parameters in 32 bits."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        *,
        narrow: bool,
        paged: bool,
        exact: Iterable[torch.Tensor] = (),
    ) -> None:
        self._exact = set(map(id, exact))
        super().__init__(groups, lr=learning_rate, optim_bits=8 if narrow else 32, is_paged=paged)

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """What bitsandbytes asks before it makes a parameter's moments."""
        config: dict[str, Any] = super().get_config(gindex, pindex, group)
        if id(group["params"][pindex]) in self._exact:
            config["optim_bits"] = 32
        return config

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Go on from a checkpoint. bitsandbytes itself would put paged moments on the GPU for good, which may be
        just where they do not fit."""
        super().load_state_dict(state_dict, move_to_device=False)
        for parameter, state in self.state.items():
            for name, value in state.items():
                if not isinstance(value, torch.Tensor):
                    continue
                if name in _MOMENTS:
                    state[name] = self.get_state_buffer(parameter, dtype=value.dtype)
                    state[name].copy_(value)
                else:
                    state[name] = value.to(parameter.device)
