"""From the Train page's widgets to a run: the plan that moves with every setting, the data check, and Start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.callbacks import Latest, Shown
from app.components import note_html, progress_html
from app.drafts import Checks, Settings, Starts, example_prompts, usable_length
from app.train.fitting import Fitting
from app.train.marks import marks_html
from app.train.summary import check_line_html, instead_html, state_html, summary_html, words_html
from app.train.widgets import Widgets
from jobs.data.columns import Shape
from jobs.errors import UserError
from jobs.service import Service
from jobs.service.datasets import Preflight, Progress

USUAL_PROMPTS = ("What can you help me with?", "How do I bake bread?", "Tell me something surprising.")
NO_DATASET = '<p class="check-line warn">Choose a dataset, or <a href="datasets">add one</a>.</p>'


class Starting:
    """Callbacks; each takes the values of `Widgets.inputs`."""

    def __init__(self, service: Service, widgets: Widgets) -> None:
        self._service = service
        self._widgets = widgets
        self._checks, self._starts = Checks(service), Starts()
        self._fitting = Fitting(service, widgets, self._checks)
        self.fit, self.undo = self._fitting.fit, self._fitting.undo
        self._latest_check, self._latest_plan = Latest(), Latest()

    def plan(self, request: gr.Request, fitting: str | None, *values: Any) -> Shown:
        """What will happen and what each method costs, from the newest data check where there is one; of plans side
        by side the newest's. `fitting`: what was fitted last."""
        service, w = self._service, self._widgets
        newest = self._latest_plan.begin(request)
        now = w.settings(values)
        try:
            draft = now.draft
            done = service.planning.plan(draft, self._checks.get(draft))
            model = service.models.base(draft.base_model_id)
            data = service.datasets.get(draft.dataset_id)
        except UserError as error:
            if not newest():
                return {}
            return {
                w.summary: "",
                w.state: "",
                **self._fitting.show(fitting, now, done=None),
                w.words: note_html(" ".join(error.problems)) + self._instead(now),
                w.start: gr.Button("Start training", variant="primary"),
                w.marks: "",
                **self._costs(now, None),
            }
        if not newest():
            return {}
        short = done.fits is False and not done.problems
        learns = summary_html(done, model, data.name, w.methods[draft.method].label)
        return {
            w.summary: learns,
            w.state: state_html(done),
            **self._fitting.show(fitting, now, done),
            w.words: words_html(done),
            w.start: gr.Button(
                "Start anyway" if short else "Start training",
                variant="secondary" if short or done.problems else "primary",
            ),
            w.marks: marks_html(done.problems, w.titles(draft.method, draft.task)),
            **self._costs(now, self._checks.get(draft)),
        }

    def _costs(self, now: Settings, check: Preflight | None) -> Shown:
        """The method cards, as everything is set."""
        if now.base is None:
            return {}
        choices = self._service.planning.methods(
            now.base, now.task, now.preset, check, now.training, {now.method: now.method_params}
        )
        return self._widgets.show_methods(choices, now.method)

    def _instead(self, now: Settings) -> str:
        return instead_html(self._service, now.dataset) if now.dataset and now.base and not now.task else ""

    def check(self, request: gr.Request, *values: Any) -> Iterator[Shown]:
        """Every row, with progress; the newest check of a page alone goes on."""
        w = self._widgets
        newest = self._latest_check.begin(request)
        now = w.settings(values)
        if not (now.dataset and now.base and now.task):
            yield {w.training_rows: gr.Column(visible=False), w.checked: "" if now.dataset else NO_DATASET}
            return
        draft = now.draft
        try:
            usable_length(draft.training["max_length"])
        except UserError:
            yield {w.training_rows: gr.Column(visible=False), w.checked: ""}  # the summary says what is wrong
            return
        yield {w.checked: progress_html(0, "Checking every row")}
        for news in self._checks.run(draft):
            if not newest():
                return
            if isinstance(news, Progress):
                yield {w.checked: progress_html(news.done / max(news.total, 1), news.text)}
                continue
            # Prompts of the data itself would show what was learned by heart; a plain text has no usual ones.
            plain = Shape.TEXT in w.tasks[draft.task].shapes
            suggested = (*news.example_prompts, *USUAL_PROMPTS) if plain else USUAL_PROMPTS
            own = example_prompts(self._service, draft.dataset_id)
            yield {
                w.checked: check_line_html(news, draft.dataset_id, draft.training["max_length"]),
                w.training_rows: gr.Column(visible=news.bad_rows > 0),
                **w.suggest_prompts(own or suggested),
            }

    def start(self, request: gr.Request, *values: Any) -> Iterator[Shown]:
        """Check what has not been checked yet, then queue the run; a second press soon after means the same run."""
        w = self._widgets
        yield {w.start: gr.Button("Starting ...", interactive=False), w.started: None}
        try:
            draft = w.settings(values).draft
            # What can be said without reading a row comes first, all of it.
            report = self._checks.get(draft)
            UserError.raise_all(self._service.planning.plan(draft, report).problems)
            for news in self._checks.run(draft):
                if isinstance(news, Preflight):
                    report = news
                else:
                    done = progress_html(news.done / max(news.total, 1), f"First the data: {news.text}")
                    yield {w.words: done}
            found = self._service.planning.plan(draft, report)
            if found.spec is None:
                raise UserError(*found.problems)
            page = str(request.session_hash)
            run_id = self._starts.once(page, self._service, found.spec, draft.base_model_id, draft.dataset_id)
        except Exception:
            yield {w.start: gr.Button("Start training", interactive=True)}
            raise
        yield {w.started: run_id, w.start: gr.Button("Start training", interactive=True)}
