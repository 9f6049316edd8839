"""Before Start: settings to a checked RunSpec, with what will be trained and whether it fits."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from jobs import starter, starter_encoder
from jobs.errors import UserError
from jobs.fields import problems_of
from jobs.frozen import Frozen
from jobs.hardware import Hardware, this_machine
from jobs.memory import Estimate, estimate, fits
from jobs.methods import method as find_method
from jobs.presets import preset as find_preset
from jobs.service.choices import (
    MethodChoice,
    TaskChoice,
    methods_for,
    preset_params,
    share,
    suggested,
    task_problem,
    tasks_for,
)
from jobs.service.datasets import Datasets, Preflight
from jobs.service.models import BaseModelView, Models
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
    notes: tuple[str, ...]  # worth knowing, forbidding nothing
    estimate: Estimate | None
    fits: bool | None  # None: cannot be said
    free_memory: int  # bytes
    device: str  # "NVIDIA H100", "AMD EPYC"
    trainable_parameters: int | None
    trainable_percent: float | None
    train_rows: int | None
    validation_rows: int | None
    steps: int | None


class Planning:
    def __init__(self, models: Models, datasets: Datasets) -> None:
        self._models = models
        self._datasets = datasets

    def tasks(self, dataset_id: int, base_model_id: int | None) -> tuple[TaskChoice, ...]:
        """The tasks that the dataset's shape allows; those that the model cannot learn say why."""
        shape = self._models.base(base_model_id).shape if base_model_id else None
        return tasks_for(self._datasets.get(dataset_id).mapping, shape)

    def bases_for(self, dataset_id: int) -> tuple[BaseModelView, ...]:
        """The base models here that can learn one of the dataset's tasks, the fittest first: of small models an
        encoder sorts, marks and finds better than one that writes."""
        reads = any(task.head in READERS for task in self._usual_tasks(dataset_id))
        fitting = [
            base
            for base in self._models.bases()
            if base.available and any(not task.problems for task in self.tasks(dataset_id, base.id))
        ]
        return tuple(sorted(fitting, key=lambda base: (base.shape.family == "encoder") != reads))

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
        longest = check.longest if check else None
        chosen = find_task(task) if task else None
        return methods_for(shape, chosen, find_preset(preset), settings, this_machine(), longest, edited)

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
        notes: list[str] = []
        base = _try(problems, lambda: self._models.base(draft.base_model_id))
        dataset = _try(problems, lambda: self._datasets.get(draft.dataset_id))
        method = _try(problems, lambda: find_method(draft.method))
        task = _try(problems, lambda: find_task(draft.task))
        training = _validated(problems, TrainingParams, draft.training)
        method_params = _validated(problems, type(method).Params, draft.method_params) if method else None
        task_params = _validated(problems, type(task).Params, draft.task_params) if task else None

        mapping = dataset.mapping if dataset else None
        if dataset and not mapping:
            problems.append(f"Graft could not tell what the columns of {dataset.name!r} mean. Choose them on its page.")
        if task and task_params and mapping and base:
            if mapping.shape not in task.shapes:
                problems.append(
                    f"You set the task to {task.label}, but {dataset.name!r} holds "  # type: ignore[union-attr]
                    f"{mapping.shape} data. Choose the task {task_for(mapping.shape).label}, or change its columns."
                )
            else:
                problems += task.check_data(task_params, mapping, base.shape.has_chat_template)
            problems += task.check_model(task_params, base.shape)
        if base and not base.available:
            problems.append(
                f"The files of {base.name} are no longer at {base.location}. Put them back or choose another."
            )
        if base and method and method_params:
            refused = task_problem(method, task) if task else []
            problems += refused or method.check(method_params, base.shape, hardware)
            notes += method.notes(method_params, base.shape, hardware)
        if training and training.recompute and method and not method.recomputes:
            problems.append(
                f"You set Recompute activations, but {method.label} cannot train with it: what is recomputed would not "
                "see the prefix. Turn it off, or choose another method."
            )
        places = method.positions(method_params) if method and method_params else 0
        if (
            base
            and training
            and places
            and base.shape.max_length - places < training.max_length <= base.shape.max_length
        ):
            problems.append(
                f"You set Maximum length to {training.max_length:,}, but {base.name} was made for at most "
                f"{base.shape.max_length:,} tokens, and {method.label} takes {places} of them. Lower it."  # type: ignore[union-attr]
            )
        if base and training and training.max_length > base.shape.max_length:
            problems.append(
                f"You set Maximum length to {training.max_length:,}, but {base.name} was made for at most "
                f"{base.shape.max_length:,} tokens. Lower it."
            )
        if len(draft.prompts) > MAX_PROMPTS:
            problems.append(
                f"You set {len(draft.prompts)} fixed prompts; at most {MAX_PROMPTS} are answered. Remove some."
            )

        rows = check.rows if check else (dataset.rows if dataset else 0)
        if check and training:
            problems += _bad_rows(check, training)
            rows = check.good_rows
            if check.truncated_rows:
                notes.append(
                    f"{check.truncated_rows:,} of {check.rows:,} rows are longer than {training.max_length:,} tokens "
                    f"and lose their end; the longest has {check.longest:,}."
                )
        train_rows = validation_rows = steps = None
        if training and rows:
            validation_rows = training.validation_rows(rows)
            train_rows = rows - validation_rows
            steps = training.steps(train_rows)
        if dataset and training and rows == 0:
            problems.append(f"{dataset.name!r} has no row that can be trained on.")
        if training and training.early_stop and not training.validation_percent:
            notes.append("Early stop needs a validation split; with none the run goes on to its end.")

        head = None
        if task and task_params and base:
            head = task.new_head(task_params, base.shape, len(check.labels) if check else 0)
            if check and check.labels:
                wrong, worth_knowing = task.check_labels(task_params, check.labels, check.good_rows)
                problems += wrong
                notes += worth_knowing
            if head is not None and training and not training.validation_percent:
                notes.append("Without a validation split nothing is measured but the loss. Keep some rows aside.")
        left = task.body(base.shape) if task and base else base.shape if base else None
        trainable = method.trainable(method_params, left) if left and method and method_params else None
        if trainable is not None and head:
            trainable += head
            notes.append(f"The model gets a new head of {head:,} parameters, trained along with any method.")
        needs, enough = None, None
        if left and method and method_params and training:
            longest = check.longest if check else None
            needs = estimate(
                left, method, method_params, training, hardware, longest, task.sequences if task else 1, head
            )
            enough = fits(needs, hardware)
            if not enough:
                notes.append(_does_not_fit(needs, hardware, training))
        spec = None
        if not problems and base and dataset and mapping and training and method_params and task_params:
            spec = RunSpec(
                name=draft.name.strip() or f"{dataset.name} · {method.label}",  # type: ignore[union-attr]
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
            )
        return Plan(
            spec=spec,
            problems=tuple(problems),
            notes=tuple(notes),
            estimate=needs,
            fits=enough,
            free_memory=hardware.memory_free,
            device=hardware.name,
            trainable_parameters=trainable,
            trainable_percent=share(trainable, base.shape) if base and trainable else None,
            train_rows=train_rows,
            validation_rows=validation_rows,
            steps=steps,
        )


def _usual_length(shape: ModelShape, taken: int = 0) -> int:
    """Tokens a row may have unless the person chooses; `taken`: places that the method needs for itself."""
    return max(16, min(TrainingParams().max_length, shape.max_length - taken))


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


def _bad_rows(check: Preflight, training: TrainingParams) -> list[str]:
    if not check.bad_rows or training.leave_out_bad_rows:
        return []
    first = check.bad[0]
    return [
        f"{check.bad_rows:,} of {check.rows:,} rows cannot be used (row {first.row}: {first.reason}). "
        "Choose to leave them out, or mend them: the dataset's page shows what helps."
    ]


def _does_not_fit(needs: Estimate, hardware: Hardware, training: TrainingParams) -> str:
    advice = [
        "lower Micro-batch" if training.batch_size > 1 else "",
        "lower Maximum length" if training.max_length > 256 else "",
        "turn on Recompute activations" if not training.recompute else "",
        "choose QLoRA" if hardware.device == "cuda" else "",
    ]
    steps = [step for step in advice if step] or ["choose a smaller base model"]
    return (
        f"This needs about {needs.total / 1e9:.1f} GB, and {hardware.memory_free / 1e9:.1f} GB are free on "
        f"{hardware.name}: it will probably run out of memory. To fit it, {', or '.join(steps)}."
    )
