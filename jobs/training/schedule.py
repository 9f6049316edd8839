"""Optimizer, learning rate and the steps at which a run is evaluated: the same for every training loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs.spec import Schedule

if TYPE_CHECKING:
    import torch

    from jobs.training.loop import Job


def evaluation_steps(total_steps: int, evaluations: int) -> frozenset[int]:
    """Steps after which to evaluate and save: every ceil(total / evaluations), and the last."""
    every = math.ceil(total_steps / evaluations)
    return frozenset((*range(every, total_steps, every), total_steps))


def rate(schedule: Schedule, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """The learning rate at step 0, 1, ... as a share of its peak.

    The warm-up's first step already moves: with transformers' own schedule it has rate 0 and is lost.
    """

    def at(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        if schedule == "linear":
            return max(0.0, 1.0 - done)
        if schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return 1.0

    return at


def parameter_groups(job: Job) -> list[dict[str, Any]]:
    """AdamW's groups over what is trainable. Weight decay spares vectors (norms, biases)."""
    training = job.spec.training
    groups = job.method.parameter_groups(job.model, job.method_params, training.learning_rate, training.weight_decay)
    if groups is None:
        trainable = [parameter for parameter in job.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
    return [group for group in groups if group["params"]]


def make_optimizer(job: Job, groups: list[dict[str, Any]]) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW over these groups, its moments held as the settings say, and its learning-rate schedule."""
    import torch

    training = job.spec.training
    optimizer: torch.optim.Optimizer
    if training.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)
    else:
        from jobs.training.moments import HeldAdamW, embeddings

        optimizer = HeldAdamW(
            groups,
            training.learning_rate,
            narrow=training.narrow_moments,
            paged=training.paged_moments,
            exact=embeddings(job.model),
        )
    warmup_steps = math.ceil(job.total_steps * training.warmup_percent / 100)
    schedule = rate(training.schedule, warmup_steps, job.total_steps)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
