"""docs/methods.md and docs/tasks.md from the registries; the marked parts of docs/training.md and README.md, and the
plot of the memory's estimate, from what was measured: `python -m docs.generate`. tests/test_docs.py fails where they
are stale.

One function a page; a page is a list of lines. Imports no torch: sizes come from names and shapes of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from docs import measured
from docs.plots import memory_plot
from docs.shapes import shapes
from docs.tables import row
from jobs.fields import limits_of, number_text, title_of, zero_of
from jobs.hardware import Hardware
from jobs.loops import FAMILIES, FUSED
from jobs.methods import all_methods
from jobs.methods.base import Method
from jobs.methods.targets import GUIDE
from jobs.shape import ModelShape
from jobs.tasks import all_tasks
from jobs.tasks.base import Task

ROOT = Path(__file__).resolve().parents[1]
_MADE = "<!-- made by `make docs`: "  # what follows, up to the end mark, is not written by hand
GPU = Hardware(device="cuda", name="GPU", memory_total=24 << 30, memory_free=23 << 30, cores=8, bf16=True)
# PEFT's words for what a model does, in ours.
DOES = {
    "CAUSAL_LM": "write",
    "SEQ_2_SEQ_LM": "rewrite",
    "SEQ_CLS": "classify",
    "TOKEN_CLS": "tag",
    "QUESTION_ANS": "extract",
}
# Settings without which a method does nothing.
NEEDED = {"trainable-tokens": {"tokens": "<|im_start|> <|im_end|>"}}


def methods_page() -> list[str]:
    known = dict(shapes())
    lines = [
        "# Methods",
        "",
        "Written by `make docs` from the methods themselves; change those, not this page.",
        "",
        "Parameters are those trained on SmolLM2-135M with the default settings. A method that *merges* can be folded",
        "into the base and then costs nothing; *slows* says whether it makes answers slower until then.",
    ]
    groups: dict[str, list[Method]] = {}
    for chosen in all_methods().values():
        groups.setdefault(chosen.group, []).append(chosen)
    head = ["Method", "Parameters", "Merges", "Slows", "Base weights", "Tasks", *known]
    for group, members in groups.items():
        lines += ["", f"## {group}", "", row(head), row(["---"] * len(head))]
        lines += [row(_cells(chosen, known)) for chosen in members]
        lines += [""] + [f"- **{chosen.label}**: {chosen.help}" for chosen in members]
    lines += ["", "## Choosing layers", "", GUIDE.rstrip(), "", "## Settings"]
    for chosen in all_methods().values():
        lines += ["", f"### {chosen.label}", "", *_settings(chosen)]
    return lines


def tasks_page() -> list[str]:
    known = dict(shapes())
    lines = [
        "# Tasks",
        "",
        "Written by `make docs` from the tasks and methods themselves; change those, not this page.",
        "",
        "A dataset's shape is detected; docs/methods.md tells what each method is.",
        "",
        row(["Task", "What it does", "Data", "Base models", "Tried in"]),
        row(["---"] * 5),
    ]
    tasks = all_tasks().values()
    for task in tasks:
        fits = [name for name, shape in known.items() if not task.check_model(task.Params(), shape)]
        data = ", ".join(shape.value for shape in task.shapes)
        lines.append(row([task.label, task.help, data, ", ".join(fits), "the playground" if task.talks else "Try"]))
    lines += [
        "",
        "## Which method goes with which task",
        "",
        "The kinds of base model that a method's defaults train for a task. tests/test_methods.py trains every method",
        "on every kind: it attaches, counts, learns, resumes, reloads, merges where it merges, and answers.",
        "",
    ]
    heads: dict[str, list[Task]] = {}  # to a method, tasks with the same head are one
    for task in tasks:
        heads.setdefault(task.peft_task_type, []).append(task)
    columns = heads.values()
    lines.append(row(["Method", *("; ".join(task.label for task in column) for column in columns)]))
    lines.append(row(["---"] * (len(columns) + 1)))
    for chosen in all_methods().values():
        lines.append(row([chosen.label, *(_kinds(chosen, column[0], known) for column in columns)]))
    lines += ["", "## What is measured", "", "On the rows kept aside, at each evaluation, beside the loss."]
    for task in tasks:
        if task.measures:
            lines += ["", f"### {task.label}: measures", ""]
            lines += [f"- `{name}`: {words}" for name, words in task.measures.items()]
    lines += ["", "## Settings"]
    for task in tasks:
        lines += ["", f"### {task.label}", "", *_settings(task)]
    return lines


def training_page() -> list[str]:
    return _filled(
        "docs/training.md",
        {
            "known": _packed_loop_knows,
            "measured": measured.loops,
            "curves": measured.curves,
            "peers": measured.peers,
            "cpu": measured.cpu,
            "page": measured.page,
            "memory": measured.memory,
        },
    )


def readme() -> list[str]:
    return _filled("README.md", {"peers": measured.peers_in_short})


def _filled(name: str, parts: dict[str, Callable[[], list[str]]]) -> list[str]:
    """The page as it is written, with what stands between its marks made anew."""
    lines, skipping = [], False
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        skipping = skipping and line != "<!-- end -->"
        if not skipping:
            lines.append(line)
        if line.startswith(_MADE):
            lines += parts[line.removeprefix(_MADE).removesuffix(" -->")]()
            skipping = True
    return lines


def _packed_loop_knows() -> list[str]:
    return [
        f"- Methods: {', '.join(chosen.label for chosen in all_methods().values() if chosen.packs)}; on a base in full",
        "  precision, 4 bits or, on a GPU that multiplies them, 8-bit floats",
        f"- Tasks: {', '.join(task.label for task in all_tasks().values() if task.packs)}",
        f"- Decoders: {', '.join(FUSED)} in layers of its own; {', '.join(sorted({*FAMILIES} - {*FUSED}))} in",
        "  transformers' layers, with its attention and its LoRA",
    ]


PAGES: dict[str, Callable[[], list[str]]] = {
    "docs/methods.md": methods_page,
    "docs/tasks.md": tasks_page,
    "docs/training.md": training_page,
    "docs/memory.svg": lambda: memory_plot(measured.results("memory-cuda")["results"]),
    "README.md": readme,
}


def _kinds(chosen: Method, task: Task, known: dict[str, ModelShape]) -> str:
    """The kinds of model on which the method trains the task."""
    if task.peft_task_type not in chosen.task_types:
        return "–"
    params = type(chosen).Params(**NEEDED.get(chosen.name, {}))
    fits = [
        name
        for name, shape in known.items()
        if not task.check_model(task.Params(), shape) and not chosen.check(params, shape, GPU)
    ]
    return ", ".join(fits) or "–"


def _cells(chosen: Method, shapes: dict[str, ModelShape]) -> list[str]:
    params = type(chosen).Params(**NEEDED.get(chosen.name, {}))
    first = next(iter(shapes.values()))
    fits = {name: not chosen.check(params, shape, GPU) for name, shape in shapes.items()}
    return [
        chosen.label,
        f"{chosen.trainable(params, first):,}" if next(iter(fits.values())) else "–",
        "yes" if chosen.merges else "no",
        "yes" if chosen.slows_answers else "no",
        _base_weights(chosen),
        "all" if set(chosen.task_types) == set(DOES) else ", ".join(DOES[kind] for kind in chosen.task_types),
        *("yes" if fits[name] else "no" for name in shapes),
    ]


def _base_weights(chosen: Method) -> str:
    field = type(chosen).Params.model_fields.get("base_weights")
    if field is None:
        return {"none": "full", "int8": "8-bit", "nf4": "4-bit"}[chosen.quantization(type(chosen).Params())]
    shape = dict(shapes())["Llama"]
    params = type(chosen).Params(**NEEDED.get(chosen.name, {}))
    held = get_args(field.annotation)
    return ", ".join(h for h in held if not chosen.check(params.model_copy(update={"base_weights": h}), shape, GPU))


def _settings(chosen: Method | Task) -> Iterator[str]:
    fields = type(chosen).Params.model_fields
    if not fields:
        yield "None."
        return
    yield row(["Setting", "Default", "May be", "What it does"])
    yield row(["---"] * 4)
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        zero = f" 0: {zero_of(field)}." if zero_of(field) else ""
        yield row([title_of(name, field), _value(default), _allowed(field), f"{field.description or ''}{zero}"])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return number_text(value) if isinstance(value, int | float) else (value or "empty")


def _allowed(field: Any) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(map(str, get_args(field.annotation)))
    if field.annotation is bool:
        return "on, off"
    if field.annotation is str:
        return "text"
    limits = limits_of(field)
    low, high = limits.get("ge", limits.get("gt")), limits.get("le")
    return f"{number_text(low)} to {number_text(high)}" if low is not None and high is not None else "a number"


def main() -> None:
    for name, page in PAGES.items():
        (ROOT / name).write_text("\n".join(page()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
