"""Before Start: settings to a checked RunSpec, with what will be trained and whether it fits."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from jobs import starter, starter_encoder
from jobs.errors import UserError
from jobs.fields import problems_of
from jobs.fitting import Fitted, Run, fit
from jobs.frozen import Frozen
from jobs.hardware import this_machine
from jobs.loops import Choice, problem
from jobs.memory.estimate import Estimate, budget, fits, limited
from jobs.memory.kept import Lengths
from jobs.methods import method as find_method
from jobs.pace import tokens_seen
from jobs.presets import preset as find_preset
from jobs.service.checking import (
    Parts,
    can_be_fitted,
    does_not_fit,
    notes_together,
    problems_together,
    row_problems,
    too_few,
    why_not_epochs,
)
from jobs.service.choices import (
    MethodChoice,
    TaskChoice,
    methods_for,
    preset_params,
    share,
    suggested,
    tasks_for,
)
from jobs.service.datasets import Datasets, Preflight
from jobs.service.models import BaseModelView, Models
from jobs.service.paces import Paces
from jobs.shape import ModelShape
from jobs.spec import DatasetRef, RunSpec, TrainingParams
from jobs.tasks import task as find_task
from jobs.tasks import task_for
from jobs.tasks.base import READERS, Task

MAX_PROMPTS = 8


class Draft(Frozen):
    """What the form holds: plain values, not yet checked."""

    name: str = ""
    base_model_id: int
    dataset_id: int
    method: str = "lora"
    method_params: dict[str, Any] = Field(default_factory=dict)
    task: str = "chat"
    task_params: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    prompts: tuple[str, ...] = ()


class Plan(Frozen):
    """The answer to a draft. `spec` is None where `problems` forbid the run."""

    spec: RunSpec | None
    problems: tuple[str, ...]  # all of them, in the user's words
    warnings: tuple[str, ...]  # what will probably go wrong, forbidding nothing
    notes: tuple[str, ...]  # worth knowing
    loop: Choice | None  # which will train it, and why
    estimate: Estimate | None
    fits: bool | None  # None: cannot be said
    can_be_fitted: bool  # it does not fit, and other settings may
    free_memory: int  # bytes that the run may take
    memory_limited: bool  # because the settings say so; else it is what is free
    device: str  # "NVIDIA H100", "AMD EPYC"
    trainable_parameters: int | None
    trainable_percent: float | None
    train_rows: int | None
    validation_rows: int | None
    steps: int | None
    steps_note: str  # where Epochs does not decide how many; else empty
    seconds: tuple[float, float] | None  # the whole run's least and most, where earlier ones on this machine tell
    untold: bool  # everything that decides the seconds is known, but no earlier run tells them


class Planning:
    def __init__(self, models: Models, datasets: Datasets, paces: Paces) -> None:
        self._models = models
        self._datasets = datasets
        self._paces = paces

    def tasks(self, dataset_id: int, base_model_id: int | None) -> tuple[TaskChoice, ...]:
        """The tasks that the dataset's shape allows; those that the model cannot learn say why."""
        shape = self._models.base(base_model_id).shape if base_model_id else None
        return tasks_for(self._datasets.get(dataset_id).mapping, shape)

    def bases_for(self, dataset_id: int) -> tuple[BaseModelView, ...]:
        """The base models here that can learn one of the dataset's tasks, the fittest first: one that can learn the
        usual task, and of small models an encoder, which sorts, marks and finds better than one that writes."""
        usual = self._usual_tasks(dataset_id)
        reads = any(task.head in READERS for task in usual)
        learns = [
            (base, {task.name for task in self.tasks(dataset_id, base.id) if not task.problems})
            for base in self._models.bases()
            if base.available
        ]
        learns.sort(
            key=lambda each: (
                not any(task.name in each[1] for task in usual),
                (each[0].shape.family == "encoder") != reads,
            )
        )
        return tuple(base for base, tasks in learns if tasks)

    def hub_model_for(self, dataset_id: int) -> str:
        """The Hub id of a small model for the dataset's usual task, where none is here that can learn it."""
        reads = any(task.head in READERS for task in self._usual_tasks(dataset_id))
        return starter_encoder.HUB_ID if reads else starter.HUB_ID

    def _usual_tasks(self, dataset_id: int) -> list[Task]:
        """The task that the dataset is made for; none where its columns are not understood."""
        mapping = self._datasets.get(dataset_id).mapping
        return [task_for(mapping.shape)] if mapping else []

    def methods(
        self,
        base_model_id: int,
        task: str | None,
        preset: str = "balanced",
        check: Preflight | None = None,
        training: dict[str, Any] | None = None,
        edited: dict[str, dict[str, Any]] | None = None,
    ) -> tuple[MethodChoice, ...]:
        """Every method with its cost on this model; those that cannot be chosen say why.

        `training`, and `edited` by a method's name, are settings over the preset's. Impossible ones do not count.
        """
        shape = self._models.base(base_model_id).shape
        usual = {**find_preset(preset).training, "max_length": _usual_length(shape)}
        try:
            settings = TrainingParams(**{**usual, **(training or {})})
        except ValidationError:
            settings = TrainingParams(**usual)
        chosen = find_task(task) if task else None
        return methods_for(shape, chosen, find_preset(preset), settings, this_machine(), lengths_of(check), edited)

    def defaults(
        self,
        base_model_id: int,
        dataset_id: int | None,
        method: str = "lora",
        preset: str = "balanced",
        task: str | None = None,
    ) -> Draft:
        """A draft with the preset's settings for this model, dataset, method and task, or the dataset's usual task."""
        shape = self._models.base(base_model_id).shape
        chosen, settings = find_method(method), find_preset(preset)
        if task is None:
            fitting = self.tasks(dataset_id, base_model_id) if dataset_id else ()
            usual = next((each for each in fitting if not each.problems), next(iter(fitting), None))
            task = usual.name if usual else "chat"
        teaches = find_task(task)
        mapping = self._datasets.get(dataset_id).mapping if dataset_id else None
        rate = chosen.learning_rate(shape) * teaches.rate_scale
        training = {"learning_rate": float(f"{rate:.2g}"), **settings.training}
        params = preset_params(chosen, settings)
        training["max_length"] = _usual_length(shape, chosen.positions(type(chosen).Params(**params)))
        return Draft(
            base_model_id=base_model_id,
            dataset_id=dataset_id or 0,
            method=method,
            method_params=params,
            task=task,
            task_params=suggested(teaches, mapping, shape) if mapping and mapping.shape in teaches.shapes else {},
            training=TrainingParams(**training).model_dump(),
        )

    def plan(self, draft: Draft, check: Preflight | None = None) -> Plan:
        """Check everything and estimate, in milliseconds: no weights are read.

        `check` is the dataset's preflight with these settings where it has been made: it makes rows, steps and the
        estimate exact, and bad rows a problem unless they are left out. Never raises for what a form can hold.
        """
        hardware = this_machine()
        problems: list[str] = []
        parts = self._read(draft, problems)
        base, dataset, mapping, method, task = parts.base, parts.dataset, parts.mapping, parts.method, parts.task
        method_params, task_params, training = parts.method_params, parts.task_params, parts.training
        problems += problems_together(parts, hardware)
        if len(draft.prompts) > MAX_PROMPTS:
            problems.append(
                f"You set {len(draft.prompts)} fixed prompts; at most {MAX_PROMPTS} are answered. Remove some."
            )
        rows = (check.good_rows if training else check.rows) if check else (dataset.rows if dataset else 0)
        problems += row_problems(parts, check, rows)
        train_rows = validation_rows = steps = None
        if training and rows:
            validation_rows = training.validation_rows(rows)
            train_rows = rows - validation_rows
            steps = training.steps(train_rows)

        head = None
        if task and task_params and base:
            head = task.new_head(task_params, base.shape, len(check.labels) if check else 0)
        warnings = [few] if (few := too_few(rows, validation_rows or 0)) else []
        notes = [*notes_together(parts, check, head, hardware)]
        left = task.body(base.shape) if task and base else base.shape if base else None
        trainable = method.trainable(method_params, left) if left and method and method_params else None
        if trainable is not None and head:
            trainable += head
        needs, enough = None, None
        loop, slowdown = None, 1.0
        if run := self._run(parts, check):
            planner = run.planner(hardware)
            memory_plan, needs = planner.planned()
            slowdown = planner.slowdown(memory_plan)
            choice = run.choice(hardware)
            if forbidden := problem(choice, run.task, run.method, run.params):
                problems.append(forbidden)
            loop = choice.with_plan(memory_plan, run.trained.layers)
            enough = fits(needs, hardware, run.training)
            if not enough:
                warnings.append(does_not_fit(needs, hardware, run.training))
        seconds, untold = None, False
        if run and loop and check and check.good_rows and train_rows and steps and base:
            training = run.training
            tokens = tokens_seen(
                train_rows,
                steps,
                training.batch_size * training.gradient_accumulation,
                max(training.epochs, steps / training.steps_an_epoch(train_rows)),  # more for the least steps
                check.tokens / check.good_rows,
            )
            settings = {
                "task": draft.task,
                "training": training.model_dump(),
                "method_params": run.params.model_dump(),
            }
            seconds = self._paces.seconds(base.id, loop.loop, hardware, draft.method, settings, tokens, slowdown)
            untold = seconds is None
        spec = None
        if not problems and base and dataset and mapping and training and method and method_params and task_params:
            spec = RunSpec(
                name=draft.name.strip() or f"{dataset.name} · {method.label}",
                base_model=self._models.ref(base.id),
                dataset=DatasetRef(
                    name=dataset.name,
                    fingerprint=dataset.fingerprint,
                    rows=self._datasets.rows_path(dataset),
                    mapping=mapping,
                    mends=dataset.mends,
                ),
                task=draft.task,
                task_params=task_params.model_dump(),
                method=draft.method,
                method_params=method_params.model_dump(),
                training=training,
                prompts=tuple(prompt.strip() for prompt in draft.prompts if prompt.strip()),
                predicted_memory=needs.total if needs else None,
                predicted_seconds=seconds,
            )
        bounds = training or TrainingParams()
        return Plan(
            spec=spec,
            problems=tuple(problems),
            warnings=tuple(warnings),
            notes=tuple(notes),
            loop=loop,
            estimate=needs,
            fits=enough,
            can_be_fitted=bool(
                run and needs and not enough and not problems and can_be_fitted(needs, hardware, run.training)
            ),
            free_memory=budget(hardware, bounds),
            memory_limited=limited(hardware, bounds),
            device=hardware.name,
            trainable_parameters=trainable,
            trainable_percent=share(trainable, base.shape) if base and trainable else None,
            train_rows=train_rows,
            validation_rows=validation_rows,
            steps=steps,
            steps_note=why_not_epochs(training, train_rows) if training and train_rows else "",
            seconds=seconds,
            untold=untold,
        )

    def fit(self, draft: Draft, check: Preflight | None = None) -> tuple[Draft, Fitted]:
        """The draft with settings that fit the free memory, and what was changed. The same draft where nothing helps.

        Raises UserError where it cannot be estimated.
        """
        problems: list[str] = []
        run = self._run(self._read(draft, problems), check)
        UserError.raise_all(problems)
        if run is None:
            raise UserError("The memory cannot be estimated with these settings. Mend what is marked first.")
        found = fit(run, this_machine())
        fitted = {"training": found.training.model_dump(), "method_params": found.params}
        return draft.model_copy(update=fitted), found

    def _run(self, parts: Parts, check: Preflight | None) -> Run | None:
        """What the estimate is made of; None where a part of it could not be read."""
        base, task, method, training = parts.base, parts.task, parts.method, parts.training
        if not (base and task and method and parts.method_params and parts.task_params and training):
            return None
        return Run(
            shape=base.shape,
            trained=task.body(base.shape),
            task=task,
            method=method,
            params=parts.method_params,
            training=training,
            lengths=lengths_of(check),
            p99=check.p99 if check else None,
            head=task.new_head(parts.task_params, base.shape, len(check.labels) if check else 0),
        )

    def _read(self, draft: Draft, problems: list[str]) -> Parts:
        """The draft's parts; what is wrong with each by itself goes to `problems`."""
        base = _try(problems, lambda: self._models.base(draft.base_model_id))
        dataset = _try(problems, lambda: self._datasets.get(draft.dataset_id))
        method = _try(problems, lambda: find_method(draft.method))
        task = _try(problems, lambda: find_task(draft.task))
        training = _validated(problems, TrainingParams, draft.training)
        return Parts(
            base=base,
            dataset=dataset,
            method=method,
            method_params=_validated(problems, type(method).Params, draft.method_params) if method else None,
            task=task,
            task_params=_validated(problems, type(task).Params, draft.task_params) if task else None,
            training=training,
        )


def _usual_length(shape: ModelShape, taken: int = 0) -> int:
    """Tokens a row may have unless the person chooses; `taken`: places that the method needs for itself."""
    return max(16, min(TrainingParams().max_length, shape.max_length - taken))


def lengths_of(check: Preflight | None) -> Lengths | None:
    """What a data check found of the rows' lengths; None without one, or where no row is good."""
    if check is None or not check.good_rows:
        return None
    return Lengths(
        longest=check.longest, mean=check.tokens / check.good_rows, spread=check.spread, rows=check.good_rows
    )


def _try(problems: list[str], call: Any) -> Any:
    """The call's value; where it raises UserError, None, and its problems are noted."""
    try:
        return call()
    except UserError as error:
        problems.extend(error.problems)
        return None


def _validated(problems: list[str], kind: type[Frozen], values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValidationError as error:
        problems.extend(problems_of(kind, error))
        return None
