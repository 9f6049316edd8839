"""A run in words and numbers, as JSON: what moves (`header`) and what is told once (`details`)."""

from __future__ import annotations

from typing import Any, Literal, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from app.components import bytes_text, duration_text, range_text
from jobs.errors import UserError
from jobs.fields import applies, label_of, title_of, zero_of
from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.memory.estimate import CUDA_CONTEXT, as_loaded, compute_bytes, least_on_cpu, over_limit
from jobs.methods import all_methods, method
from jobs.service import Service
from jobs.service.checking import NOT_LESS
from jobs.service.runs import RunView
from jobs.sizes import bytes_texts
from jobs.spec import TrainingParams
from jobs.tasks import task

Pairs = list[tuple[str, str]]
_HARDLY = 0.01  # of a limit, or of a loss: nobody has to be told that it was exceeded by so little


def header(service: Service, run: RunView) -> dict[str, Any]:
    """Everything of a run that can change while someone looks; times in seconds since the epoch."""
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state.value,
        "words": words(service, run),
        "reason": run.reason,
        "ended": run.state.ended,
        "active": run.state.active,
        "step": run.step,
        "total_steps": run.total_steps,
        "eta_seconds": run.eta_seconds,
        "eta_at": None if run.eta_seconds is None else service.runs.last_step_time(run.id),  # when that was left
        "best_step": run.best_step,
        "best_eval_loss": run.best_eval_loss,
        "predicted_memory": run.predicted_memory,
        "peak_memory": run.peak_memory,
        "memory_limit": int(run.spec.training.memory_limit_gb * 1e9),  # bytes, 0 for none
        "over_limit": over_limit_text(service, run),
        "worse": worse_text(service, run),
        "adapter_id": run.adapter_id,
        "result": "model" if full(run.spec.method) else "adapter",
        "try_it": try_it(run.spec.task, run.adapter_id) if run.adapter_id else None,
        "can_stop": not run.state.ended and not run.stop_requested,
        "can_resume": run.can_resume,
        "attempt": run.attempt,
        "created_at": run.created_at.timestamp(),
        "started_at": run.started_at.timestamp() if run.started_at else None,
        "attempt_at": run.attempt_at.timestamp() if run.attempt_at else None,
        "trained_seconds": run.trained_seconds,
        "ended_at": run.ended_at.timestamp() if run.ended_at else None,
    }


def full(method_name: str) -> bool:
    """Whether what it trains is a whole model, and no adapter."""
    known = all_methods().get(method_name)  # None: of a later version
    return known is not None and known.trains_base


def try_it(task_name: str, adapter_id: int) -> tuple[str, str]:
    """What one does with an adapter of this task, and the page for it."""
    if talks(task_name):
        return "Chat with it", f"/playground?adapter={adapter_id}"
    return "Try it", f"/predict?adapter={adapter_id}"


def talks(task_name: str) -> bool:
    """Whether what the task trains is asked in the playground's chat; a task of a later version is taken to."""
    try:
        return task(task_name).talks
    except UserError:
        return True


def words(service: Service, run: RunView) -> str:
    """What the run is doing, as one would say it."""
    match run.state.value:
        case "queued":
            before = service.runs.queue_position(run.id)
            runs = f"{before} run{'' if before == 1 else 's'}"
            waits = f"Waiting: {runs} before this one" if before else "Waiting to start"
            told = run.spec.predicted_seconds if run.attempt == 1 else None
            return f"{waits}. This run will take about {range_text(*told)}, longer if busy" if told else waits
        case "starting" | "running":
            return run.phase or "Starting"
        case "stopping":
            return "Stopping: it finishes its step and saves"
        case ended:
            if run.started_at:
                return f"{'Took' if ended == 'completed' else 'After'} {duration_text(run.trained_seconds)}"
            return ""


def details(run: RunView) -> dict[str, Any]:
    """What was trained, on what, with which settings."""
    spec = run.spec
    return {
        "loop": str((run.hardware or {}).get("loop_why", "")),  # runs from before there were two have none
        "subtitle": f"{label(method, spec.method)} on {spec.base_model.name}, with {spec.dataset.name}",
        "base_model_id": run.base_model_id,
        "dataset_id": run.dataset_id,
        "facts": facts(run),
        "settings": settings(run),
        "prompts": list(spec.prompts),
    }


def facts(run: RunView) -> Pairs:
    """Enough to make the run again, and to know that it was this one."""
    spec = run.spec
    found: Pairs = [
        ("Run", f"{run.id}, attempt {run.attempt}"),
        ("Base model", spec.base_model.name),
        ("Dataset", spec.dataset.name),
        ("Dataset fingerprint", spec.dataset.fingerprint),
    ]
    if run.train_rows is not None:
        found.append(("Rows", f"{run.train_rows:,} trained, {run.validation_rows or 0:,} kept aside for validation"))
    if run.trainable_parameters:
        found.append(("Trained parameters", f"{run.trainable_parameters:,}"))
    found.append(("Seed", str(spec.training.seed)))
    if run.hardware:
        found.append(("Hardware", _hardware_text(run.hardware)))
    if run.predicted_memory:
        found.append(("Predicted peak memory", bytes_texts(run.predicted_memory, run.peak_memory or 0)[0]))
    if run.peak_memory and run.state.ended:
        found.append(("Measured peak memory", measured_text(run.peak_memory, run.predicted_memory)))
    if run.packages:
        found.append(("Versions", ", ".join(f"{name} {version}" for name, version in run.packages.items())))
    found.append(("Queued", f"{run.created_at:%Y-%m-%d %H:%M:%S} UTC"))
    return found


def measured_text(measured: int, predicted: int | None) -> str:
    """The peak, and how far off the prediction was."""
    if not predicted:
        return bytes_text(measured)
    off = round(100 * (measured / predicted - 1))
    said = "as predicted" if off == 0 else f"{abs(off)} % {'more' if off > 0 else 'less'} than predicted"
    return f"{bytes_texts(measured, predicted)[0]}, {said}"


def over_limit_text(service: Service, run: RunView) -> str:
    """By how much the run went over the memory limit that it was given, and why; empty where it hardly did or not."""
    device = (run.hardware or {}).get("device", "cpu")
    over = over_limit(run.spec.training, device, run.peak_memory or 0)
    limit = int(run.spec.training.memory_limit_gb * 1e9)
    if over <= _HARDLY * limit:
        return ""
    context = CUDA_CONTEXT if device == "cuda" else 0
    beside = f", with the {bytes_text(CUDA_CONTEXT)} that the GPU's own programs take" if context else ""
    predicted = run.predicted_memory + context if run.predicted_memory else None
    allowed, taken, more, told = bytes_texts(limit, limit + over, over, predicted or limit)
    if device == "cpu" and _least_on_cpu(service, run) > limit:
        why = NOT_LESS
    elif predicted and predicted <= limit:
        why = (
            f"It was predicted to take {told}: the estimate was too low for it. A run with a lower "
            "limit saves more, where it can."
        )
    else:
        why = "Where no way fits a limit, a run takes the most saving one and goes on."
    return (
        f"This run went over its memory limit: you set {allowed}, and it took {taken} at its peak{beside}, "
        f"{more} more. {why}"
    )


def worse_text(service: Service, run: RunView) -> str:
    """That training did harm, and what to change: where even the lowest validation loss of a run that has ended lies
    above the one before training. Empty where it does not, or where there was none."""
    if not run.state.ended or run.best_eval_loss is None or run.best_step is None:
        return ""
    before = service.runs.loss_before(run.id)
    if before is None or run.best_eval_loss - before <= _HARDLY * before:
        return ""
    return (
        "On rows that it has not seen, this run made the model worse: the validation loss was "
        f"{_loss_text(before)} before training, and {_loss_text(run.best_eval_loss)} at its lowest since, at step "
        f"{run.best_step:,}. Train again with a learning rate below {run.spec.training.learning_rate:g}, with fewer "
        "steps, or on more rows."
    )


def _loss_text(loss: float) -> str:
    """As the page's figures show it (static/chart.js)."""
    return f"{loss:.{3 if loss < 10 else 2 if loss < 100 else 0}f}"


def _least_on_cpu(service: Service, run: RunView) -> int:
    """Bytes that no way could save: without the base model, where it is no longer known."""
    try:
        hardware = Hardware.model_validate(
            {name: value for name, value in (run.hardware or {}).items() if name in Hardware.model_fields}
        )
        shape = task(run.spec.task).body(service.models.base(run.base_model_id).shape)
        return least_on_cpu(as_loaded(shape, full(run.spec.method), compute_bytes(hardware)))
    except (UserError, ValidationError):  # the base model was deleted, or the run is of another version of Graft
        return least_on_cpu(0)


def _hardware_text(hardware: dict[str, Any]) -> str:
    parts = [str(hardware.get("name") or hardware.get("device") or "unknown")]
    if cores := hardware.get("cores"):
        parts.append(f"{cores} cores")
    if memory := hardware.get("memory_total"):
        parts.append(bytes_text(memory))
    if dtype := hardware.get("dtype"):
        parts.append(str(dtype))
    return ", ".join(parts)


def settings(run: RunView) -> list[tuple[str, Pairs]]:
    """Every setting under its title, by group; titles come from where the setting is declared."""
    spec = run.spec
    groups: list[tuple[str, Pairs]] = [("Training", _pairs(TrainingParams, spec.training.model_dump()))]
    for find, name, params in ((method, spec.method, spec.method_params), (task, spec.task, spec.task_params)):
        try:
            declared: type[BaseModel] = find(name).Params  # type: ignore[operator]
        except UserError:  # a run of a later version of Graft
            declared = Frozen
        groups.append((label(find, name), _pairs(declared, params)))
    return [(title, pairs) for title, pairs in groups if pairs]


def label(find: Any, name: str) -> str:
    try:
        return str(find(name).label)
    except UserError:
        return name


def _pairs(declared: type[BaseModel], given: dict[str, Any]) -> Pairs:
    """Titles and values: the declared defaults with what was given over them, without what means nothing there."""
    values = {name: field.get_default(call_default_factory=True) for name, field in declared.model_fields.items()}
    values |= given
    return [
        (title_of(name, field), _value_text(value, field))
        if (field := declared.model_fields.get(name))
        else (name, _value_text(value))
        for name, value in values.items()
        if name not in declared.model_fields or applies(declared, name, values)
    ]


def _value_text(value: Any, field: FieldInfo | None = None) -> str:
    """`field`: where the value is one of a setting's."""
    if field and get_origin(field.annotation) is Literal:
        return label_of(field, value)
    if field and value == 0 and (meant := zero_of(field)):
        return meant
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value) or "none"


def steps_text(run: RunView) -> str:
    """'40 of 120', or what there is."""
    return f"{run.step:,} of {run.total_steps:,}" if run.total_steps else (f"{run.step:,}" if run.step else "–")
