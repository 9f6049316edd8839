"""What the Train page shows when it opens, and what follows from each choice made on it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import gradio as gr

from app.callbacks import Shown, query_number
from app.drafts import Settings, example_prompts
from app.train.methods import chosen_method
from app.train.summary import instead_html
from app.train.widgets import Widgets
from jobs.errors import UserError
from jobs.presets import PRESETS
from jobs.service import Service
from jobs.service.datasets import DatasetView
from jobs.service.models import BaseModelView
from jobs.service.planning import TaskChoice


class Choosing:
    """Callbacks, one a choice: they give what the widgets show then."""

    def __init__(self, service: Service, widgets: Widgets) -> None:
        self._service = service
        self._widgets = widgets

    def open(self, request: gr.Request, kept: str | None) -> Shown:
        """What the browser kept of this page before a reload; else a run's settings or the choices of the address,
        with sound defaults for the rest."""
        service, w = self._service, self._widgets
        datasets, bases = service.datasets.list(), service.models.bases()
        kept_settings = self._kept(kept)
        now = kept_settings or self._asked(request)
        view = next((each for each in datasets if each.id == now.dataset), None)
        base_id = now.base if now.base in [each.id for each in bases] else None
        fitting = service.planning.tasks(view.id, base_id) if view else ()
        task = _task(fitting, now.task)
        shown: Shown = {
            w.dataset: gr.Dropdown(
                choices=[(each.name, each.id) for each in datasets], value=view.id if view else None
            ),
            w.base: gr.Dropdown(choices=[(each.name, each.id) for each in bases], value=base_id),
            w.base_chosen: kept_settings is not None or bool({"base", "run"} & set(request.query_params)),
            w.preset: now.preset,
            w.name: now.name,
            **w.show_task(fitting, task, now.task_params, instead=self._instead(view, fitting), fresh=True),
            **w.show_prompts(now.prompts),
            **w.suggest_prompts(example_prompts(service, view.id if view else None)),
        }
        if base_id is None:
            return shown
        draft = service.planning.defaults(base_id, None, now.method, now.preset, task)
        return {
            **shown,
            **w.show_training(now.training or draft.training),
            **w.show_methods(
                service.planning.methods(
                    base_id,
                    task,
                    now.preset,
                    training=now.training,
                    edited={now.method: now.method_params},
                ),
                now.method,
            ),
            **w.show_method(
                now.method,
                now.method_params or draft.method_params,
                service.models.base(base_id).shape,
                fresh=True,
            ),
        }

    def _kept(self, kept: str | None) -> Settings | None:
        """What the page held when it was left; None where the browser keeps nothing that fits this Graft."""
        w = self._widgets
        try:
            remembered = json.loads(kept or "null") or {}
            if remembered.get("version") != w.version:
                return None
            now = w.settings(remembered["values"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return now if now.method in w.methods and now.preset in PRESETS else None

    def _asked(self, request: gr.Request) -> Settings:
        """The choices of the address, or of the run that it names. Settings that it does not say are empty."""
        service, w = self._service, self._widgets
        if (run_id := query_number(request, "run")) is not None:
            run = service.runs.get(run_id)
            spec = run.spec
            if spec.method in w.methods:
                return Settings(
                    dataset=run.dataset_id,
                    base=run.base_model_id,
                    method=spec.method,
                    preset="balanced",
                    task=spec.task,
                    name=spec.name,
                    prompts=spec.prompts,
                    training=spec.training.model_dump(),
                    method_params=spec.method_params,
                    task_params=spec.task_params,
                )
        said = {name: str(request.query_params.get(name, "")) for name in ("method", "preset", "task")}
        dataset = query_number(request, "dataset") or next((each.id for each in service.datasets.list()), None)
        return Settings(
            dataset=dataset,
            base=query_number(request, "base") or self._usual_base(dataset),
            method=said["method"] if said["method"] in w.methods else next(iter(w.methods)),
            preset=said["preset"] if said["preset"] in PRESETS else "balanced",
            task=said["task"] or None,
            name="",
            prompts=(),
            training={},
            method_params={},
            task_params={},
        )

    def _usual_base(self, dataset: int | None) -> int | None:
        """The base model that suits the dataset best, else the first."""
        fitting: tuple[BaseModelView, ...] = ()
        if dataset:
            with suppress(UserError):  # the address names a dataset that is gone
                fitting = self._service.planning.bases_for(dataset)
        available = (each for each in self._service.models.bases() if each.available)
        return next((each.id for each in (*fitting, *available)), None)

    def dataset(
        self,
        dataset_id: int | None,
        base_id: int | None,
        method: str,
        preset: str,
        task: str | None,
        base_chosen: bool,
    ) -> Shown:
        """Other data: the tasks that fit it, prompts that suit it, and the model that does, unless one was chosen."""
        w = self._widgets
        view = self._service.datasets.get(dataset_id) if dataset_id else None
        usual = base_id if base_chosen else self._usual_base(dataset_id)
        fitting = self._service.planning.tasks(view.id, usual) if view else ()
        now = _task(fitting, task)
        follows = self._method(usual, method, preset, now) if usual and usual != base_id else {}
        return {
            w.base: usual,
            **w.show_task(fitting, now, {}, instead=self._instead(view, fitting)),
            **(follows or (self._rate(usual, method, preset, now) if now != task else {})),
            **w.suggest_prompts(example_prompts(self._service, dataset_id)),
            w.leave_out: False,
        }

    def model(self, dataset_id: int | None, base_id: int | None, method: str, preset: str, task: str | None) -> Shown:
        """Another model: what depends on it follows, the rest stays as it was set."""
        if base_id is None:
            return {}
        w = self._widgets
        view = self._service.datasets.get(dataset_id) if dataset_id else None
        fitting = self._service.planning.tasks(view.id, base_id) if view else ()
        now = _task(fitting, task)
        words = {} if now == task and now else w.show_task(fitting, now, {}, instead=self._instead(view, fitting))
        return {w.base_chosen: True, w.task_words: gr.skip(), **words, **self._method(base_id, method, preset, now)}

    def method(
        self, event: gr.EventData, dataset_id: int | None, base_id: int | None, _: str, preset: str, task: str | None
    ) -> Shown:
        """Another method: its own settings and learning rate; the cards move their mark by themselves."""
        chosen = chosen_method(event)
        return {self._widgets.method: chosen, **(self._method(base_id, chosen, preset, task) if base_id else {})}

    def task(
        self, dataset_id: int | None, base_id: int | None, method: str, preset: str, _: str | None, task: str | None
    ) -> Shown:
        """Another of the tasks offered: its settings, and its learning rate."""
        fitting = self._service.planning.tasks(dataset_id, base_id) if dataset_id else ()
        return {
            **self._widgets.show_task(fitting, task, {}),
            **self._rate(base_id, method, preset, task),
        }

    def preset(
        self,
        dataset_id: int | None,
        base_id: int | None,
        method: str,
        preset: str,
        task: str | None,
        leaves_out: bool,
    ) -> Shown:
        if base_id is None:
            return {}
        w = self._widgets
        draft = self._service.planning.defaults(base_id, None, method, preset, task)
        shown = w.show_training(draft.training | {"leave_out_bad_rows": leaves_out})
        del shown[w.training["memory_limit_gb"]]  # says something of the machine, not of the run
        return {
            **shown,
            **w.show_method(method, draft.method_params, self._service.models.base(base_id).shape),
        }

    def layers(self, *values: Any) -> Shown:
        """The table of layers and the settings that others bring with them, as everything stands."""
        now = self._widgets.settings(values)
        shown = self._widgets.method_forms.follow(now.method, now.method_params)
        if now.base is not None:
            shape = self._service.models.base(now.base).shape
            shown |= self._widgets.show_layers(now.method, now.method_params, shape)
        return shown

    def _method(self, base_id: int, method: str, preset: str, task: str | None) -> Shown:
        w = self._widgets
        draft = self._service.planning.defaults(base_id, None, method, preset, task)
        suits = w.show_training(draft.training)
        follows: list[Any] = [w.training[name] for name in ("learning_rate", "max_length")]
        return {
            **{widget: suits[widget] for widget in follows},
            **w.show_method(method, draft.method_params, self._service.models.base(base_id).shape),
        }

    def _rate(self, base_id: int | None, method: str, preset: str, task: str | None) -> Shown:
        """Another task wants another learning rate."""
        if base_id is None or task is None:
            return {}
        w = self._widgets
        draft = self._service.planning.defaults(base_id, None, method, preset, task)
        rate: Any = w.training["learning_rate"]
        return {rate: w.show_training(draft.training)[rate]}

    def _instead(self, view: DatasetView | None, fitting: tuple[TaskChoice, ...]) -> str:
        return instead_html(self._service, view.id) if view and fitting and _task(fitting, None) is None else ""


def _task(fitting: tuple[TaskChoice, ...], wanted: str | None) -> str | None:
    """The wanted task where it can be chosen, else the first that can."""
    can = [each.name for each in fitting if not each.problems]
    return wanted if wanted in can else next(iter(can), None)
