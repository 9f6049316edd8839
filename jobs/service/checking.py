"""What the parts of a draft say together: what forbids the run, and what is worth knowing before it.

Each function takes what could be read of the draft; what could not has been told already. Ends where the plan is made
of it (jobs.service.planning).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.data.columns import Mapping
from jobs.hardware import Hardware
from jobs.memory.estimate import CUDA_CONTEXT, PROCESS, Estimate, budget, least_on_cpu, limited
from jobs.methods.base import Method
from jobs.service.choices import task_problem
from jobs.service.datasets import DatasetView, Preflight
from jobs.service.models import BaseModelView
from jobs.sizes import bytes_texts
from jobs.spec import TrainingParams
from jobs.tasks import task_for
from jobs.tasks.base import Task

# Of fewer rows the usual tenth kept aside is one or two: by so few nobody can tell what was learned from what was
# learned by heart, and the checkpoint that they call the best is one by chance.
FEW_ROWS = 20
# Why a limit may be too low to be kept on a CPU, whatever is set.
NOT_LESS = (
    f"On a CPU the limit counts the whole training program (about {PROCESS / 1e9:.1f} GB before it loads a model) and "
    "the base model itself: a limit below that cannot be kept."
)


@dataclass(frozen=True)
class Parts:
    """A draft as it was read; None stands for what was wrong by itself."""

    base: BaseModelView | None
    dataset: DatasetView | None
    method: Method | None
    method_params: Any
    task: Task | None
    task_params: Any
    training: TrainingParams | None

    @property
    def mapping(self) -> Mapping | None:
        return self.dataset.mapping if self.dataset else None


def problems_together(parts: Parts, hardware: Hardware) -> Iterator[str]:
    """Whatever forbids the run before its rows are looked at."""
    yield from _data_problems(parts)
    base, method = parts.base, parts.method
    if base and not base.available:
        yield f"The files of {base.name} are no longer at {base.location}. Put them back or choose another."
    if base and method and parts.method_params:
        refused = task_problem(method, parts.task) if parts.task else []
        yield from refused or method.check(parts.method_params, base.shape, hardware)
    if parts.training and parts.training.recompute == "on" and method and not method.recomputes:
        yield (
            f"You set Recompute activations to Always, but {method.label} cannot train with it: what is recomputed "
            "would not see the prefix. Choose As needed, or another method."
        )
    if parts.training and parts.training.paged_moments and hardware.device != "cuda":
        yield (
            "You set Optimizer to a paged one: pages move between a GPU and the computer's memory, and there is no GPU "
            "here. Choose one that is not paged."
        )
    yield from _length_problems(parts)


def _data_problems(parts: Parts) -> Iterator[str]:
    dataset, mapping, task = parts.dataset, parts.mapping, parts.task
    if dataset and not mapping:
        yield f"Graft could not tell what the columns of {dataset.name!r} mean. Choose them on its page."
    if not (dataset and mapping and task and parts.task_params and parts.base):
        return
    if mapping.shape not in task.shapes:
        yield (
            f"The task is {task.label}, but {dataset.name!r} holds {mapping.shape} data. "
            f"Choose the task {task_for(mapping.shape).label}, or change its columns."
        )
    else:
        yield from task.check_data(parts.task_params, mapping, parts.base.shape.has_chat_template)
    yield from task.check_model(parts.task_params, parts.base.shape)


def _length_problems(parts: Parts) -> Iterator[str]:
    base, training, method = parts.base, parts.training, parts.method
    if not (base and training):
        return
    most = base.shape.max_length
    places = method.positions(parts.method_params) if method and parts.method_params else 0
    if training.max_length > most - places:
        taken = f", and {method.label} takes {places} of them" if method and training.max_length <= most else ""
        yield (
            f"You set Maximum length to {training.max_length:,}, but {base.name} was made for at most {most:,} "
            f"tokens{taken}. Lower it."
        )


def row_problems(parts: Parts, check: Preflight | None, rows: int) -> Iterator[str]:
    """What forbids the run in its rows: those that cannot be used, labels that do not do, no row at all."""
    if check and parts.training and check.bad_rows and not parts.training.leave_out_bad_rows:
        first = check.bad[0]
        yield (
            f"{check.bad_rows:,} of {check.rows:,} rows cannot be used (row {first.row}: {first.reason}). "
            "Choose to leave them out, or mend them: the dataset's page shows what helps."
        )
    if parts.dataset and parts.training and rows == 0:
        yield f"{parts.dataset.name!r} has no row that can be trained on."
    if parts.task and parts.task_params and parts.base and check and check.labels:
        yield from parts.task.check_labels(parts.task_params, check.labels, check.good_rows)[0]


def notes_together(parts: Parts, check: Preflight | None, head: int | None, hardware: Hardware) -> Iterator[str]:
    """What forbids nothing. `head`: parameters of the new one, where the task has one."""
    base, training, task = parts.base, parts.training, parts.task
    if base and parts.method and parts.method_params:
        yield from parts.method.notes(parts.method_params, base.shape, hardware)
    if check and training and check.truncated_rows:
        yield (
            f"{check.truncated_rows:,} of {check.rows:,} rows are longer than {training.max_length:,} tokens "
            f"and lose their end; the longest has {check.longest:,}."
        )
    if training and training.paged_moments and hardware.device == "cuda":
        yield (
            "The optimizer's memory is counted in full. What of it the GPU cannot hold moves to the computer's memory, "
            "and every step then waits for it."
        )
    if training and training.narrow_moments and hardware.device == "cpu":
        yield "An optimizer in 8 bits saves memory on this CPU, too, but takes some 30 times as long for its own part."
    if training and training.early_stop and not training.validation_percent:
        yield "Early stop needs a validation split; with none the run goes on to its end."
    if task and parts.task_params and base and check and check.labels:
        yield from task.check_labels(parts.task_params, check.labels, check.good_rows)[1]
    if head is not None and training and not training.validation_percent:
        yield "Without a validation split nothing is measured but the loss. Keep some rows aside."
    if head and parts.method and parts.method_params:
        yield f"The model gets a new head of {head:,} parameters, trained along with any method."


def too_few(rows: int, validation_rows: int) -> str:
    """What to expect of so few good rows; empty where they are enough to tell."""
    if rows >= FEW_ROWS or not rows:
        return ""
    more = "Add rows: a hundred different ones teach far better."
    if rows == 1:
        return f"There is only 1 row: the model will learn it by heart, and nothing besides. {more}"
    aside = (
        f", and the {_many(validation_rows, 'row')} kept aside cannot show whether it did" if validation_rows else ""
    )
    return (
        f"There are only {rows:,} rows: the model will learn them by heart rather than what they have in "
        f"common{aside}. {more}"
    )


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def why_not_epochs(training: TrainingParams, train_rows: int) -> str:
    """Where the least or the most steps decide how many are taken: that Epochs changes nothing. Else empty."""
    steps, by_epochs = training.steps(train_rows), training.steps_by_epochs(train_rows)
    epochs = f"Epochs ({training.epochs:g}, which is {_many(by_epochs, 'step')})"
    # No problem: a preset sets Least steps, which someone who sets only Most steps may never have seen.
    if 0 < training.max_steps < training.min_steps:
        return (
            f"You set Most steps to {training.max_steps:,}, below Least steps, which is {training.min_steps:,}: the "
            f"run takes {_many(steps, 'step')}, and {epochs} changes nothing. For more steps raise Most steps; for "
            "fewer lower either."
        )
    if steps > by_epochs:
        times = steps / training.steps_an_epoch(train_rows)
        often = "once" if round(times) == 1 else f"{times:,.0f} times"
        seen = f"each row is seen about {often}" if times >= 1 else f"about {100 * times:.0f} % of the rows are seen"
        return f"Least steps is {training.min_steps:,}: {epochs} changes nothing, and {seen}."
    return f"Most steps is {training.max_steps:,}: {epochs} changes nothing." if steps < by_epochs else ""


def can_be_fitted(needs: Estimate, hardware: Hardware, training: TrainingParams) -> bool:
    """Whether other settings (jobs.fitting) may do; on a CPU none needs less than the program and the base model."""
    return hardware.device != "cpu" or least_on_cpu(needs.base) <= budget(hardware, training)


def does_not_fit(needs: Estimate, hardware: Hardware, training: TrainingParams) -> str:
    """How much is missing, and what then happens; where no other settings would do, what does."""
    below_free = limited(hardware, training)
    total, there = bytes_texts(needs.total, budget(hardware, training))
    said = f"With these settings the run needs at least {total} of memory, and "
    if not below_free:
        said += f"{there} are free on {hardware.name}: it will probably run out of memory."
    else:
        beside = f", of which the GPU's own programs take {CUDA_CONTEXT / 1e9:.2f}" if hardware.device == "cuda" else ""
        said += (
            f"you set Memory limit to {training.memory_limit_gb:g} GB{beside}. Started anyway, it goes over the limit."
        )
    if can_be_fitted(needs, hardware, training):
        return said
    if below_free and can_be_fitted(needs, hardware, TrainingParams()):
        return f"{said} {NOT_LESS} Raise the limit, or set it to 0: then the run takes what is free."
    return f"{said} The base model and the training program alone need more than that: choose a smaller base model."
