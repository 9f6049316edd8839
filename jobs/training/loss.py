"""The loss: next-token cross entropy over the trained tokens, with logits only where one of them is predicted.

What compares whole answers (preference tuning) takes their log-probabilities from the same logits.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from jobs.memory.packed import WIDENED
from jobs.training.data import IGNORED

if TYPE_CHECKING:
    import torch


def summed_loss(model: Any, batch: dict[str, torch.Tensor], right: list[Any] | None = None) -> torch.Tensor:
    """The sum of the batch's token losses; divide by the trained tokens of the whole step.

    Where `right` is given, how many of its trained tokens the model would have chosen itself is appended for each row.
    """
    logits, targets = predicted(model, batch)
    if right is not None:
        right += right_tokens(logits, targets)
    return token_losses(logits, targets).sum()


def answer_log_probs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The log-probability of each row's trained tokens given those before them, summed: [rows], in 32 bits."""
    return -token_losses(*predicted(model, batch)).sum(dim=1)


def predicted(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [rows, kept, vocabulary] and the tokens they should predict [rows, kept].

    Positions at which no row of the batch trains are left out of the output head, by far the widest layer: a chat's
    prompt costs no logits.
    """
    targets = batch["labels"][:, 1:]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    before = virtual_tokens(model)
    if _keeps_logits(model):
        keep = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
        return model(**inputs, logits_to_keep=keep + before, use_cache=False).logits, targets[:, keep]
    return model(**inputs, use_cache=False).logits[:, before:-1], targets


def right_tokens(logits: torch.Tensor, targets: torch.Tensor) -> list[int]:
    """How many of each row's tokens the model would have chosen itself."""
    return ((logits.argmax(dim=-1) == targets) & (targets != IGNORED)).sum(dim=1).tolist()


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross entropy of each token, 0 where it is not trained: [rows, tokens], in 32 bits.

    Where nothing is trained only a few tokens' logits are widened at a time: all of them would be what a run needs at
    its peak."""
    import torch

    flat, wanted = logits.flatten(0, 1), targets.flatten()
    size = max(len(flat), 1) if torch.is_grad_enabled() else WIDENED
    parts = zip(flat.split(size), wanted.split(size), strict=True)
    losses = [
        torch.nn.functional.cross_entropy(part.float(), right, ignore_index=IGNORED, reduction="none")
        for part, right in parts
    ]
    return torch.cat(losses).view(targets.shape)


def virtual_tokens(model: Any) -> int:
    """How many positions the method puts before the input. A prefix stands in the cache and is none."""
    config = getattr(model, "active_peft_config", None)
    if getattr(model, "_adapters_disabled", False):
        return 0
    return config.num_virtual_tokens if config and config.peft_type in ("PROMPT_TUNING", "P_TUNING") else 0


def _keeps_logits(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters
