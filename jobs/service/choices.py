"""What can be chosen for a dataset and a model: the tasks that fit, and every method with its cost here.

Answers in milliseconds from sizes alone; what does not apply comes with the reason, in the user's words.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from jobs.data.columns import Mapping
from jobs.data.templates import USUAL
from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.loops import choose
from jobs.memory.estimate import Planner, fits, limited
from jobs.memory.kept import Lengths
from jobs.methods import all_methods
from jobs.methods.base import Method
from jobs.presets import Preset
from jobs.shape import ModelShape
from jobs.spec import TrainingParams
from jobs.tasks import tasks_for as tasks_taking
from jobs.tasks.base import Task


class TaskChoice(Frozen):
    """A task that the dataset's shape allows."""

    name: str
    label: str
    help: str
    params: dict[str, Any]  # its settings, as this dataset suggests them
    problems: tuple[str, ...]  # why this model cannot learn it; empty where it can


class MethodChoice(Frozen):
    """A method and what it costs on this model, as it is set."""

    name: str
    label: str
    help: str
    group: str
    recommended: bool
    merges: bool
    slows_answers: bool
    trainable: int | None  # parameters, a task's new head not among them
    percent: float | None  # of all the model's parameters
    memory: int | None  # bytes at the peak
    fits: bool | None
    limited: bool  # by the memory limit that was set, and not by what is free
    problems: tuple[str, ...]  # why it cannot be chosen here, as a fact; empty where it can


def tasks_for(mapping: Mapping | None, shape: ModelShape | None) -> tuple[TaskChoice, ...]:
    """In the order the form shows them, the usual one first; without a model, only the data decides. One that this
    model cannot learn says why, where the data is made for it: what only can be read as such suggests nothing."""
    if mapping is None:
        return ()
    tasks = tasks_taking(mapping.shape)
    choices = [
        TaskChoice(
            name=task.name,
            label=task.label,
            help=task.help,
            params=suggested(task, mapping, shape),
            problems=tuple(_task_problems(task, mapping, shape)),
        )
        for task in tasks
    ]
    return tuple(
        choice
        for choice, task in zip(choices, tasks, strict=True)
        if not choice.problems or mapping.shape not in task.borrowed
    )


def suggested(task: Task, mapping: Mapping, shape: ModelShape | None = None) -> dict[str, Any]:
    """The task's settings as this dataset suggests them, and a chat template where the model has none."""
    params = type(task).Params(**task.suggest(mapping)).model_dump()
    if "template" in params and shape and not shape.has_chat_template:
        params["template"] = USUAL
    return params


def _task_problems(task: Task, mapping: Mapping, shape: ModelShape | None) -> list[str]:
    if shape is None:
        return []
    params = type(task).Params(**suggested(task, mapping, shape))
    problems = [*task.check_data(params, mapping, shape.has_chat_template), *task.check_model(params, shape)]
    # Nobody has chosen it: it is one of those that the data offers.
    chosen, offered = f"The task is {task.label}, but ", f"This dataset suggests {task.label}, but "
    return [problem.replace(chosen, offered) for problem in problems]


def methods_for(
    shape: ModelShape,
    task: Task | None,
    preset: Preset,
    training: TrainingParams,
    hardware: Hardware,
    lengths: Lengths | None = None,
    edited: dict[str, dict[str, Any]] | None = None,
) -> tuple[MethodChoice, ...]:
    """Every method there is, in the order the form shows them. `lengths` where the data was checked.
    `edited`: settings by a method's name, over the preset's; where they cannot be, the preset's count.
    """
    return tuple(
        _method_choice(
            each,
            _usable(each, preset, (edited or {}).get(each.name, {})),
            shape,
            task,
            training,
            hardware,
            lengths,
        )
        for each in all_methods().values()
    )


def preset_params(method: Method, preset: Preset) -> dict[str, Any]:
    """The method's defaults with its settings of the preset's size over them."""
    sized = {name: by_size[preset.size] for name, by_size in method.sizes.items()}
    return type(method).Params(**sized).model_dump()


def task_problem(method: Method, task: Task) -> list[str]:
    """Why a method cannot train for a task; empty where it can."""
    if task.peft_task_type in method.task_types:
        return []
    return [f"{method.label} cannot be trained for the task {task.label}. Choose another method."]


def _usable(method: Method, preset: Preset, edited: dict[str, Any]) -> Any:
    """The preset's settings with the edited ones over them, where these are possible."""
    sized = preset_params(method, preset)
    try:
        return type(method).Params(**{**sized, **edited})
    except ValidationError:
        return type(method).Params(**sized)


def _method_choice(
    method: Method,
    params: Any,
    shape: ModelShape,
    task: Task | None,
    training: TrainingParams,
    hardware: Hardware,
    lengths: Lengths | None,
) -> MethodChoice:
    problems = (task_problem(method, task) if task else []) or method.check(params, shape, hardware)
    trainable = memory = enough = None
    if not problems:
        left = task.body(shape) if task else shape
        trainable = method.trainable(params, left)
        head = task.new_head(type(task).Params(), shape, 0) if task else None
        sequences = task.sequences if task else 1
        loop = task and choose(training, task, method, params, shape, hardware).loop
        needs = Planner(left, method, params, training, hardware, lengths, sequences, head, loop or "plain").planned()[
            1
        ]
        memory, enough = needs.total, fits(needs, hardware, training)
    return MethodChoice(
        name=method.name,
        label=method.label,
        help=method.help,
        group=method.group,
        recommended=not problems and method.recommended(hardware),
        merges=method.merges,
        slows_answers=method.slows_answers,
        trainable=trainable,
        percent=share(trainable, shape) if trainable is not None else None,
        memory=memory,
        fits=enough,
        limited=limited(hardware, training),
        problems=tuple(_as_fact(problem) for problem in problems),
    )


def _as_fact(problem: str) -> str:
    """For a card among others, where nothing has been chosen yet: without "You chose BitFit, but"."""
    said = re.sub(r"^You chose [^,]+, (but |which )?", "", problem)
    return said[:1].upper() + said[1:]


def share(trainable: int, shape: ModelShape) -> float:
    """Percent of all parameters that are trained; a method that trains the base's own adds none."""
    return 100 * trainable / max(shape.parameters, 1)
