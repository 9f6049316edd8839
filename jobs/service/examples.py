"""The datasets in examples/, each with a recipe that visibly teaches the starter model: one click, and it trains."""

from __future__ import annotations

import contextlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from jobs import starter
from jobs.data.preflight import Preflight
from jobs.errors import UserError
from jobs.frozen import Frozen
from jobs.service.datasets import Datasets, DatasetView
from jobs.service.models import BaseModelView, Models
from jobs.service.planning import Draft, Planning
from jobs.service.runs import Runs, RunView

FOLDER = Path(__file__).resolve().parents[2] / "examples"


class Example(Frozen):
    """One entry of examples/index.json. Settings stand over the defaults, as in a draft."""

    name: str
    title: str
    description: str
    file: str  # in examples/
    base_model: str = starter.NAME  # one of the starters
    task: str = "chat"
    task_params: dict[str, Any] = Field(default_factory=dict)
    method: str = "lora"
    method_params: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    prompts: tuple[str, ...] = ()  # not in the data: what base and tuned model answer at each checkpoint

    @property
    def path(self) -> Path:
        return FOLDER / self.file


@cache
def all_examples() -> dict[str, Example]:
    """By name, in the index's order."""
    entries = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    return {entry["name"]: Example(**entry) for entry in entries}


class Examples:
    def __init__(self, models: Models, datasets: Datasets, planning: Planning, runs: Runs) -> None:
        self._models = models
        self._datasets = datasets
        self._planning = planning
        self._runs = runs

    def list(self) -> list[Example]:
        return list(all_examples().values())

    def add(self, name: str) -> DatasetView:
        """The example's file in the catalog, as if it had been uploaded. Raises UserError for an unknown name."""
        example = self._get(name)
        view = next(item for item in self._datasets.add(example.path) if isinstance(item, DatasetView))
        return view if view.name == example.title else self._datasets.rename(view.id, example.title)

    def start(self, name: str) -> RunView:
        """Train the example's starter model on it with its recipe.

        Raises UserError where the starter model is not ready yet, or the recipe does not fit this machine.
        """
        example = self._get(name)
        base = self._base(example)
        if base is None:
            raise UserError(
                f"The starter model {example.base_model} is still being prepared. Its progress is on the first page; "
                "try again then."
            )
        dataset = self.add(name)
        usual = self._planning.defaults(base.id, dataset.id, example.method, task=example.task)
        draft = Draft(
            name=example.title,
            base_model_id=base.id,
            dataset_id=dataset.id,
            method=example.method,
            method_params={**usual.method_params, **example.method_params},
            task=example.task,
            task_params={**usual.task_params, **example.task_params},
            training={**usual.training, **example.training},
            prompts=example.prompts,
        )
        plan = self._planning.plan(draft, self._check(draft))
        if plan.spec is None:
            raise UserError(*plan.problems)
        return self._runs.start(plan.spec, base.id, dataset.id)

    def _check(self, draft: Draft) -> Preflight | None:
        """Of all rows, in tenths of a second once the token child is up: what the run will need and take is told from
        their lengths. Without one it is told from the longest they may have."""
        said = self._datasets.preflight(
            draft.dataset_id, draft.base_model_id, draft.task, draft.task_params, draft.training["max_length"]
        )
        with contextlib.suppress(UserError):
            return next(each for each in said if isinstance(each, Preflight))
        return None

    def ready(self, name: str) -> bool:
        """Whether the starter model that the example trains is there."""
        return self._base(self._get(name)) is not None

    def _base(self, example: Example) -> BaseModelView | None:
        starters = (base for base in self._models.bases() if base.source == "starter" and base.available)
        return next((base for base in starters if Path(base.location).name == example.base_model), None)

    def _get(self, name: str) -> Example:
        try:
            return all_examples()[name]
        except KeyError:
            raise UserError(f"There is no example {name!r}. Choose one of: {', '.join(all_examples())}.") from None
