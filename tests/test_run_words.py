"""A run in words: its page says of a setting what the forms say, and which loop trained it."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest
from sqlalchemy import Engine

from app.forms import Form
from app.run_words import details, settings
from jobs.methods import all_methods
from jobs.service.runs import Runs, RunView
from jobs.spec import TrainingParams
from storage.states import RunState
from tests import feed


def view(engine: Engine, runs: Runs, *, training: dict[str, Any] | None = None, **columns: Any) -> RunView:
    """A run as its page sees it. `training`: over the defaults; `columns`: of its row."""
    spec = feed.spec().model_copy(update={"training": TrainingParams(**(training or {}))})
    run_id = feed.add_run(engine, RunState.RUNNING, **columns)
    return runs.get(run_id).model_copy(update={"spec": spec})


def test_settings_read_as_the_form_shows_them(engine: Engine, runs: Runs) -> None:
    told = dict(dict(settings(view(engine, runs, training={"recompute": "on"})))["Training"])
    assert told["Recompute activations"] == "Always"
    assert told["Optimizer"] == "AdamW"
    assert told["Training loop"] == "The fastest that applies"
    assert told["Learning-rate schedule"] == "Linear"


def test_which_loop_trained_it_and_why_stands_apart_from_what_is_folded(engine: Engine, runs: Runs) -> None:
    why = "Of its two training loops Graft uses the plain one here."
    told = details(view(engine, runs, hardware={"name": "CPU", "loop_why": why}))
    assert told["loop"] == why
    assert why not in dict(told["facts"]).values()
    assert details(view(engine, runs))["loop"] == "", "it has not begun, or there was but one loop then"


@pytest.mark.parametrize("name", all_methods())
def test_every_choice_of_every_method_reads_as_its_form_shows_it(engine: Engine, runs: Runs, name: str) -> None:
    method = all_methods()[name]
    run = view(engine, runs)
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"method": name, "method_params": {}})})
    told = dict(dict(settings(run)).get(method.label, []))
    with gr.Blocks():
        form = Form(type(method).Params)
    for widget in form.components:
        if isinstance(widget, gr.Radio | gr.Dropdown):
            shown = {value: label for label, value in widget.choices}
            assert told[str(widget.label)] == shown[widget.value]
