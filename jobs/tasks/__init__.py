"""Tasks, one class each: what a row means and which tokens are trained. `all_tasks` finds them; one file adds one."""

from __future__ import annotations

from functools import cache

from jobs.errors import UserError
from jobs.tasks.base import Task


@cache
def all_tasks() -> dict[str, Task]:
    """Every task by name, in the order the form shows them."""
    import jobs.tasks as package
    from jobs.registry import collect

    return collect(package, Task)


def task(name: str) -> Task:
    """Raises UserError for a name that is none."""
    try:
        return all_tasks()[name]
    except KeyError:
        raise UserError(f"There is no task {name!r}. Choose one of: {', '.join(all_tasks())}.") from None


def tasks_for(shape: str) -> list[Task]:
    """The tasks that can use a dataset of this shape, those made for it first."""
    fitting = [task for task in all_tasks().values() if shape in task.shapes]
    return sorted(fitting, key=lambda task: shape in task.borrowed)


def task_for(shape: str) -> Task:
    """The task that a dataset of this shape is trained with unless the person chooses another."""
    return tasks_for(shape)[0]
