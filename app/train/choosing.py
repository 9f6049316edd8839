"""What the Train page shows when it opens, and what follows from each choice made on it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.callbacks import Shown, query_number
from app.train.widgets import Widgets
from jobs.presets import PRESETS
from jobs.service import Service
from jobs.service.datasets import DatasetView


class Choosing:
    """Callbacks, one a choice: they give what the widgets show then."""

    def __init__(self, service: Service, widgets: Widgets) -> None:
        self._service = service
        self._widgets = widgets

    def open(self, request: gr.Request) -> Shown:
        """The choices of the address, or a run's settings; sound defaults for the rest."""
        service, w = self._service, self._widgets
        datasets, bases = service.datasets.list(), service.models.bases()
        method = str(request.query_params.get("method", ""))
        preset = str(request.query_params.get("preset", ""))
        method = method if method in w.methods else next(iter(w.methods))
        preset = preset if preset in PRESETS else "balanced"
        dataset_id = query_number(request, "dataset") or (datasets[0].id if datasets else None)
        base_id = query_number(request, "base") or next((each.id for each in bases if each.available), None)
        copied = None
        if (run_id := query_number(request, "run")) is not None:
            copied = service.runs.get(run_id)
            dataset_id, base_id, method = copied.dataset_id, copied.base_model_id, copied.spec.method
        view = next((each for each in datasets if each.id == dataset_id), None)
        if base_id not in [each.id for each in bases]:
            base_id = None
        shown: Shown = {
            w.dataset: gr.Dropdown(
                choices=[(each.name, each.id) for each in datasets], value=view.id if view else None
            ),
            w.base: gr.Dropdown(choices=[(each.name, each.id) for each in bases], value=base_id),
            w.method: method,
            w.preset: preset,
            **w.show_task(view, copied.spec.task if copied else None),
        }
        if copied:
            spec = copied.spec
            return {
                **shown,
                w.name: spec.name,
                **w.show_prompts(spec.prompts),
                **w.show_training(spec.training.model_dump()),
                **w.show_method(spec.method, spec.method_params),
                **w.show_task_params(spec.task, spec.task_params),
            }
        if base_id is not None:
            draft = service.planning.defaults(base_id, view.id if view and view.mapping else None, method, preset)
            shown |= w.show_training(draft.training) | w.show_method(draft.method, draft.method_params)
        return {**shown, **self._prompts_for(view)}

    def dataset(self, dataset_id: int | None) -> Shown:
        w = self._widgets
        view = self._service.datasets.get(dataset_id) if dataset_id else None
        return {**w.show_task(view), **self._prompts_for(view), w.leave_out: False}

    def model(self, base_id: int | None, method: str, preset: str) -> Shown:
        """Another model or method: what depends on it follows, the rest stays as it was set."""
        if base_id is None:
            return {}
        w = self._widgets
        draft = self._service.planning.defaults(base_id, None, method, preset)
        suits = w.show_training(draft.training)
        follows: list[Any] = [w.training[name] for name in ("learning_rate", "max_length")]
        return {**{widget: suits[widget] for widget in follows}, **w.show_method(method, draft.method_params)}

    def preset(self, base_id: int | None, method: str, preset: str, leaves_out: bool) -> Shown:
        if base_id is None:
            return {}
        w = self._widgets
        draft = self._service.planning.defaults(base_id, None, method, preset)
        kept = {"leave_out_bad_rows": leaves_out}
        return {**w.show_training(draft.training | kept), **w.show_method(method, draft.method_params)}

    def _prompts_for(self, view: DatasetView | None) -> Shown:
        """An example's own prompts; otherwise empty, and the data check fills them in."""
        examples = self._service.examples.list()
        known = next((each.prompts for each in examples if view and each.file == view.filename), ())
        return self._widgets.show_prompts(known)
