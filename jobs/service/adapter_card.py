"""README.md of a downloaded adapter: what it is, the lines that load it without Graft, how it was trained.

In the place of PEFT's template, which nobody would fill in. What stands above it for the Hub to read is PEFT's. The
kinds that PEFT lacks bring a README of their own (jobs.modules.readme), to which the last part is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs import methods, tasks
from jobs.frozen import Frozen
from jobs.spec import RunSpec

_USE = """\
## Use it

Needs `torch`, `transformers` and `peft`:

```python
from peft import PeftModel
from transformers import AutoTokenizer, {auto}

base = "{base}"
tokenizer = AutoTokenizer.from_pretrained(base)
model = {auto}.from_pretrained(base{labels})
model = PeftModel.from_pretrained(model, ".")  # the folder of this file
```
"""


class Trained(Frozen):
    """What the catalog knows of the run that an adapter came from."""

    spec: RunSpec
    step: int  # the adapter's
    steps: int | None  # of the whole run
    train_rows: int | None
    validation_rows: int | None
    validation_loss: float | None  # the adapter's


def written(before: str, *, name: str, base: str, labels: Sequence[str], trained: Trained) -> str:
    """The README in the place of `before`, the one in the adapter's folder. `base`: what it names the base model by.
    `labels`: of a head that the adapter brings."""
    history = f"\n{_history(trained)}"
    if not before.startswith("---\n"):
        return before + history
    front = before[: before.index("\n---\n", 3) + 5]
    spec = trained.spec
    task, method = tasks.task(spec.task), methods.method(spec.method)
    what = f"{method.label} on {_plain(base)}, trained with Graft. Task: {task.label}."
    use = _USE.format(auto=task.auto_class, base=base, labels=f", num_labels={len(labels)}" if labels else "")
    said = f"\nIts labels, in the order of the outputs: {', '.join(map(_plain, labels))}.\n" if labels else ""
    return f"{front}\n# {_plain(name)}\n\n{what}\n\n{use}{said}{history}"


def _history(trained: Trained) -> str:
    spec, training = trained.spec, trained.spec.training
    rows = [] if trained.train_rows is None else [f"{trained.train_rows:,} rows trained on"]
    rows += [f"{trained.validation_rows:,} kept aside"] if trained.validation_rows else []
    facts = {
        "Dataset": ", ".join([_plain(spec.dataset.name), *rows]),
        "Saved at": f"step {trained.step:,}" + (f" of {trained.steps:,}" if trained.steps else ""),
        "Validation loss": "" if trained.validation_loss is None else f"{trained.validation_loss:.4g}",
        "Learning rate": f"{training.learning_rate:g}",
        "Rows a step": f"{training.batch_size * training.gradient_accumulation:,}",
        "Maximum length": f"{training.max_length:,} tokens",
        f"{methods.method(spec.method).label} settings": _settings(spec.method_params),
        "Seed": f"{training.seed}",
    }
    lines = [f"| {what} | {value} |" for what, value in facts.items() if value]
    return "\n".join(["## How it was trained", "", "| | |", "| --- | --- |", *lines, ""])


def _settings(params: dict[str, Any]) -> str:
    return ", ".join(
        f"{_plain(name)} {_plain(str(value))}" for name, value in params.items() if value not in ("", None)
    )


def _plain(text: str) -> str:
    """Letters that Markdown would take for its own, as letters; in one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in text)
