"""The loss: next-token cross entropy over the trained tokens, with logits only where one of them is predicted."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from jobs.training.data import IGNORED

if TYPE_CHECKING:
    import torch


def summed_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of the batch's token losses; divide by the trained tokens of the whole step.

    Positions at which no row of the batch trains are left out of the output head, by far the widest layer: a chat's
    prompt costs no logits.
    """
    import torch

    targets = batch["labels"][:, 1:]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if _keeps_logits(model):
        keep = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
        logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits
        targets = targets[:, keep]
    else:
        logits = model(**inputs, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _keeps_logits(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters
