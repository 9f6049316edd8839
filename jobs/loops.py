"""Which loop trains a run, and why: the packed one where it knows the model, the method and the task, else the plain.

Said before Start and on the run's page; the child decides by the same function. Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from jobs.frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.hardware import Hardware
    from jobs.memory.plan import MemoryPlan
    from jobs.methods.base import Method
    from jobs.shape import ModelShape
    from jobs.spec import RunSpec, TrainingParams
    from jobs.tasks.base import Task

LoopName = Literal["packed", "plain"]
PACKED_STATE = "packed.pt"  # what the packed loop goes on from, in a checkpoint's state/
# config.json's model_type of the decoders that tests/test_packed_loop.py holds against the plain loop.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3")
FUSED = ("llama", "mistral", "qwen2", "qwen3", "smollm3")  # of them, those whose layers the packed loop has itself
TOGETHER = ("lora", "qlora", "rslora", "lora-plus")  # methods of which several runs can share their steps
_PACKED = (
    "Of its two training loops Graft uses the faster one here, the packed one: it knows this model, method and task, "
    "and loses no time on filling up short rows."
)
_PLAIN = "Of its two training loops Graft uses the plain one here (transformers' Trainer), because {}."
_OTHER = "the packed one, which is faster,"
_WIDEST_HEAD = 256  # of PyTorch's kernel for documents of different lengths
_CAPPED = ("gemma2",)  # their attention caps its logits, which no kernel for packed rows on a GPU does


class Choice(Frozen):
    loop: LoopName
    why: str  # which it is, why, and what that means: for a person, before Start and on the run's page

    def with_plan(self, plan: MemoryPlan, layers: int) -> Choice:
        """With what is done to save memory."""
        said = plan.sentence(layers)
        return Choice(loop=self.loop, why=f"{self.why} {said}") if said else self


def choose(
    training: TrainingParams, task: Task, method: Method, params: Any, shape: ModelShape, hardware: Hardware
) -> Choice:
    reason = _why_plain(training, task, method, params, shape, hardware)
    if reason:
        return Choice(loop="plain", why=_PLAIN.format(reason))
    return Choice(loop="packed", why=_PACKED)


def begun_plain() -> Choice:
    """For a run that goes on where a checkpoint of the plain loop ended."""
    return Choice(loop="plain", why=_PLAIN.format("the run was begun in it"))


def problem(choice: Choice, task: Task, method: Method, params: Any) -> str | None:
    """What forbids a run in its loop; None where nothing does."""
    if method.quantization(params) != "fp8":
        return None
    if choice.loop == "plain":
        return f"You set Base weights to 8-bit floats, which only the packed loop trains beside. {choice.why}"
    if task.sequences > 1:
        return (
            f"You set Base weights to 8-bit floats, but {task.label} holds the model against itself in full precision. "
            "Choose another form of the base."
        )
    return None


def why_apart(specs: Sequence[RunSpec]) -> str | None:
    """Why runs cannot be trained in the same steps, each with its own rate, rows and end; None where they can: they
    put matrices of the same sizes beside the same layers of the same base. Imports the methods and the tasks."""
    from jobs import methods, tasks

    first = specs[0]
    for spec in specs:
        method, task = methods.method(spec.method), tasks.task(spec.task)
        params: Any = method.Params(**spec.method_params)
        if spec.base_model != first.base_model:
            return f"they are of different base models, {first.base_model.name} and {spec.base_model.name}."
        if spec.training.optimizer != "adamw":
            return "8-bit and paged optimizers train by themselves."
        if spec.method not in TOGETHER or params.dropout:
            return f"{method.label}{' with dropout' if params.dropout else ''} trains by itself."
        if not task.packs or task.sequences > 1:
            return f"the task {task.label} trains by itself."
        if spec.method != first.method:
            return "they are of different methods."
        if _sizes(params) != _sizes(methods.method(first.method).Params(**first.method_params)):
            return "they differ in rank, in layers, or in how the base is held."
    return None


def _sizes(params: Any) -> dict[str, Any]:
    """All of a LoRA's settings but those that are only a factor."""
    return params.model_dump(exclude={"alpha", "dropout", "ratio"})


def _why_plain(
    training: TrainingParams, task: Task, method: Method, params: Any, shape: ModelShape, hardware: Hardware
) -> str | None:
    model_type = shape.model_type
    if training.loop == "plain":
        return "you set Training loop to Plain"
    if not task.packs:
        return f"{_OTHER} does not know the task {task.label}"
    if not method.packs:
        return f"{_OTHER} does not know {method.label}"
    if model_type not in FAMILIES:
        return f"{_OTHER} does not know models of the kind {model_type}"
    if method.quantization(params) == "int8":
        return f"{_OTHER} does not know base weights in 8 bits"
    if method.name == "dora" and params.dropout:
        return f"{_OTHER} does not know DoRA with dropout"
    return _why_not_on_this_gpu(shape, hardware) if hardware.device == "cuda" else None


def _why_not_on_this_gpu(shape: ModelShape, hardware: Hardware) -> str | None:
    if not hardware.bf16:
        return f"{_OTHER} needs a GPU that computes in bf16, and this one does not"
    if not hardware.compiles:
        return (
            f"{_OTHER} builds its GPU kernels with a C compiler and Python's headers, and one of them is not installed "
            "here (on Debian and Ubuntu: sudo apt install gcc python3-dev)"
        )
    if shape.model_type in _CAPPED:
        return f"{_OTHER} cannot train models of the kind {shape.model_type} on a GPU: they cap their attention"
    if shape.head_dim % 8 or shape.head_dim > _WIDEST_HEAD:
        return (
            f"{_OTHER} cannot train models with attention heads of size {shape.head_dim} on a GPU: its kernel takes "
            f"multiples of 8 up to {_WIDEST_HEAD}"
        )
    return None
