"""A run in words: its page says of a setting what the forms say, which loop trained it and what the memory was."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from sqlalchemy import Engine, update

from app.forms import Form
from app.run_words import details, header, settings, words
from jobs.hardware import Hardware
from jobs.methods import all_methods
from jobs.service.models import Models
from jobs.service.runs import Runs, RunView
from jobs.spec import TrainingParams
from storage.db import write
from storage.files import Home
from storage.states import RunState
from storage.tables import BaseModel, Metric
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
    lora = dict(dict(settings(view(engine, runs)))["LoRA"])
    assert lora["Depth"] and "Layer names" not in lora, "what means nothing beside the others is not told"


def test_which_loop_trained_it_and_why_stands_apart_from_what_is_folded(engine: Engine, runs: Runs) -> None:
    why = "Of its two training loops Graft uses the plain one here."
    told = details(view(engine, runs, hardware={"name": "CPU", "loop_why": why}))
    assert told["loop"] == why
    assert why not in dict(told["facts"]).values()
    assert details(view(engine, runs))["loop"] == "", "it has not begun, or there was but one loop then"


CPU = Hardware(device="cpu", name="It", memory_total=1 << 40, memory_free=1 << 40, cores=2, bf16=False)


@pytest.fixture
def over(engine: Engine, runs: Runs, home: Home) -> Callable[..., str]:
    """What is said of a run with this device, peak, prediction, and memory limit in GB."""
    models = Models(home, engine)

    def told(device: str, peak: int | None, limit: float = 0, *, predicted: int | None = 2_000_000_000) -> str:
        run = view(
            engine,
            runs,
            training={"memory_limit_gb": limit},
            peak_memory=peak,
            predicted_memory=predicted,
            hardware=CPU.model_dump() | {"device": device, "loop_why": "It is one."},
        )
        return str(header(SimpleNamespace(runs=runs, models=models), run)["over_limit"])  # type: ignore[arg-type]

    return told


def test_a_memory_limit_that_was_not_kept_is_told_with_by_how_much(over: Callable[..., str]) -> None:
    said = over("cpu", 1_350_000_000, 0.5)
    assert "you set 0.50 GB" in said and "took 1.35 GB" in said and "0.85 GB more" in said
    # What a GPU takes beside what is measured counts, as it does before Start.
    on_gpu = over("cuda", 9_500_000_000, 10)
    assert "took 10.13 GB" in on_gpu and "On a CPU" not in on_gpu
    assert over("cuda", 9_300_000_000, 10) == ""
    assert over("cpu", 500_000_000, 0.5) == ""
    assert over("cpu", 504_000_000, 0.5) == "", "by less than a hundredth"
    assert over("cpu", None, 0.5) == over("cpu", 1 << 40) == ""


def test_why_a_limit_was_not_kept_is_what_held_of_the_run(engine: Engine, over: Callable[..., str]) -> None:
    """A run that was predicted to stay below its limit was told that no run can."""
    nothing_less, no_way, wrong = "0.7 GB before it loads a model", "Where no way fits", "the estimate was too low"

    def why(*args: Any, **named: Any) -> list[str]:
        said = over(*args, **named)
        return [each for each in (nothing_less, no_way, wrong) if each in said]

    assert why("cpu", 1_350_000_000, 0.5) == [nothing_less]
    assert why("cpu", 2_350_000_000, 2) == [wrong]
    assert why("cpu", 3_350_000_000, 2, predicted=3_000_000_000) == [no_way], "it was said before Start"
    assert why("cuda", 9_900_000_000, 10, predicted=9_000_000_000) == [wrong]
    assert why("cuda", 9_900_000_000, 10, predicted=9_900_000_000) == [no_way], "with what the GPU's own programs take"
    assert why("cpu", 3_350_000_000, 2, predicted=None) == [no_way], "a run of an earlier version"
    with write(engine) as session:  # 4 GB in 32 bits
        session.execute(update(BaseModel).values(shape=feed.SHAPE.model_dump() | {"parameters": 1_000_000_000}))
    assert why("cpu", 5_350_000_000, 4.5, predicted=5_000_000_000) == [nothing_less]
    assert why("cpu", 5_350_000_000, 5, predicted=5_100_000_000) == [no_way]


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


def test_a_waiting_run_says_how_long_it_will_take_where_that_is_known(engine: Engine, runs: Runs) -> None:
    def told(**values: Any) -> str:
        run = view(engine, runs)
        spec = run.spec.model_copy(update={"predicted_seconds": (120.0, 180.0)})
        run = run.model_copy(update={"state": RunState.QUEUED, "attempt": 1, "spec": spec, **values})
        return words(SimpleNamespace(runs=runs), run)  # type: ignore[arg-type]

    assert told().endswith(". This run will take about 2 min to 3 min, longer if busy")
    assert "will take" not in told(attempt=2), "what is left of it is less"
    assert "will take" not in told(spec=view(engine, runs).spec)


def test_a_run_that_only_made_it_worse_says_so_and_what_to_change(engine: Engine, runs: Runs, home: Home) -> None:
    models = Models(home, engine)

    def told(before: float | None, best: float | None, state: RunState = RunState.COMPLETED) -> str:
        run = view(engine, runs, training={"learning_rate": 0.02}, best_step=30, best_eval_loss=best)
        measured = [(0, "loss", 1.0), (10, "eval_loss", 7.0), (30, "eval_loss", 6.54)]
        measured += [] if before is None else [(0, "eval_loss", before)]
        with write(engine) as session:
            session.add_all(
                Metric(run_id=run.id, step=step, name=name, value=value, time=0.0) for step, name, value in measured
            )
        run = run.model_copy(update={"state": state})
        return str(header(SimpleNamespace(runs=runs, models=models), run)["worse"])  # type: ignore[arg-type]

    said = told(2.967, 6.54)
    assert "was 2.967 before training, and 6.540 at its lowest since, at step 30" in said
    assert "a learning rate below 0.02, with fewer steps, or on more rows" in said
    assert told(2.967, 6.54, RunState.STOPPED) == said
    assert told(2.967, 6.54, RunState.RUNNING) == "", "it may come down yet"
    assert told(7.1, 6.54) == told(6.54, 6.541) == told(None, 6.54) == told(2.967, None) == ""
