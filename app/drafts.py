"""Between the Train page's widgets and a run: the settings they hold, the data checks made, the starts asked for."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError

from jobs.errors import UserError
from jobs.fields import problems_of
from jobs.service import Service
from jobs.service.datasets import Preflight, Progress
from jobs.service.planning import Draft
from jobs.spec import RunSpec, TrainingParams

SAME_START = 10.0  # seconds in which one page's second press of Start with equal settings means the same run


class Settings(NamedTuple):
    """What the page's widgets hold, in the order of `inputs`."""

    dataset: int | None
    base: int | None
    method: str
    preset: str
    task: str | None
    name: str
    prompts: tuple[str, ...]
    training: dict[str, Any]
    method_params: dict[str, Any]
    task_params: dict[str, Any]

    @property
    def draft(self) -> Draft:
        """Raises UserError where there is nothing to plan yet."""
        missing = [what for what, value in (("dataset", self.dataset), ("base model", self.base)) if not value]
        UserError.raise_all(f"Choose a {what}." for what in missing)
        if not self.task:
            raise UserError("No task fits this dataset and this base model together. Choose another of them.")
        return Draft(
            name=self.name or "",
            base_model_id=self.base,
            dataset_id=self.dataset,
            method=self.method,
            method_params=self.method_params,
            task=self.task,
            task_params=self.task_params,
            training=self.training,
            prompts=self.prompts,
        )


def example_prompts(service: Service, dataset_id: int | None) -> tuple[str, ...]:
    """The prompts that come with a dataset which is one of Graft's examples; else none."""
    file = service.datasets.get(dataset_id).filename if dataset_id else None
    return next((each.prompts for each in service.examples.list() if each.file == file), ())


def usable_length(typed: Any) -> int:
    """The maximum length to check rows with. Raises UserError in the words of the training form."""
    try:
        return TrainingParams.model_validate({"max_length": typed}).max_length
    except ValidationError as error:
        raise UserError(*problems_of(TrainingParams, error)) from error


class Checks:
    """The newest data checks of this process, so that the summary need not ask the service for a whole one."""

    def __init__(self, service: Service, kept: int = 64) -> None:
        self._service = service
        self._kept = kept
        self._reports: OrderedDict[str, Preflight] = OrderedDict()

    def get(self, draft: Draft) -> Preflight | None:
        return self._reports.get(self._key(draft))

    def run(self, draft: Draft) -> Iterator[Progress | Preflight]:
        """The whole check; the service answers at once what it has checked before."""
        length = usable_length(draft.training["max_length"])
        for news in self._service.datasets.preflight(
            draft.dataset_id, draft.base_model_id, draft.task, draft.task_params, length
        ):
            if isinstance(news, Preflight):
                self._reports[self._key(draft)] = news
                while len(self._reports) > self._kept:
                    self._reports.popitem(last=False)
            yield news

    def _key(self, draft: Draft) -> str:
        view = self._service.datasets.get(draft.dataset_id)
        return json.dumps(
            [
                view.model_dump(mode="json", include={"fingerprint", "mapping", "mends"}),  # as its rows are read now
                draft.base_model_id,
                draft.task,
                draft.task_params,
                draft.training.get("max_length"),
            ]
        )


class Starts:
    """Remembers what each page has just started: a double click on Start must not queue two runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: dict[tuple[str, str], tuple[float, int]] = {}

    def once(self, page: str, service: Service, spec: RunSpec, base_id: int, dataset_id: int) -> int:
        """The run's id: a new one, or the one that this page started with the same settings a moment ago."""
        with self._lock:
            now = time.monotonic()
            self._started = {key: run for key, run in self._started.items() if now - run[0] < SAME_START}
            predicted = {"predicted_memory", "predicted_seconds"}  # they move with what else the machine does
            key = (page, spec.model_dump_json(exclude=predicted))
            if key not in self._started:
                self._started[key] = (now, service.runs.start(spec, base_id, dataset_id).id)
            return self._started[key][1]
