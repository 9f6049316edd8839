"""What the Train page offers for a dataset and a model, and how it looks: fitting tasks, every method with its cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from app.train.choosing import Choosing
from app.train.layers import layers_html
from app.train.methods import chosen_method, methods_html
from app.train.starting import Starting
from app.train.widgets import Widgets
from jobs.errors import UserError
from jobs.methods import all_methods
from jobs.presets import PRESETS
from jobs.service import Service
from jobs.service.datasets import DatasetView
from jobs.service.planning import Draft
from storage.files import Home


@pytest.fixture
def service(home: Home) -> Iterator[Service]:
    service = Service(home)
    yield service
    service.close()


@pytest.fixture
def base(service: Service, tiny_llama: Path) -> int:
    return service.models.add_folder(tiny_llama).id


def add(service: Service, file: Path, text: str) -> int:
    file.write_text(text)
    return next(item for item in service.datasets.add(file) if isinstance(item, DatasetView)).id


@pytest.fixture
def labelled(service: Service, tmp_path: Path) -> int:
    return add(service, tmp_path / "moods.csv", "text,label\n" + "Good day,glad\nBad day,sad\n" * 20)


def request(order: int = 0, **query: str) -> Any:
    return SimpleNamespace(session_hash="a", query_params=query, headers={"x-graft-order": str(order)})


def test_only_the_tasks_of_the_datas_shape_are_offered(service: Service, base: int, labelled: int) -> None:
    assert [task.name for task in service.planning.tasks(labelled, base)] == ["classification"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_that_can_be_chosen_costs_what_the_plan_says(
    service: Service, base: int, labelled: int, preset: str
) -> None:
    choices = service.planning.methods(base, "classification", preset)
    assert [choice.name for choice in choices] == list(all_methods())
    offered = [choice for choice in choices if not choice.problems]
    assert len(offered) > 12
    for choice in offered:
        draft: Draft = service.planning.defaults(base, labelled, choice.name, preset, "classification")
        plan = service.planning.plan(draft)
        head = plan.trainable_parameters or 0
        assert not [problem for problem in plan.problems if choice.label in problem]
        assert choice.trainable is not None and choice.trainable <= head
        assert choice.memory and choice.fits is True


def test_what_cannot_be_chosen_says_why(service: Service, base: int) -> None:
    refused = {choice.name: choice for choice in service.planning.methods(base, "chat") if choice.problems}
    assert "no biases" in " ".join(refused["bitfit"].problems)
    assert refused["bitfit"].trainable is None


def test_a_task_setting_out_of_range_is_a_problem_of_the_plan(service: Service, base: int, tmp_path: Path) -> None:
    data = add(service, tmp_path / "tags.jsonl", '{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}\n' * 8)
    draft = service.planning.defaults(base, data, task="tagging")
    plan = service.planning.plan(draft.model_copy(update={"task_params": {"tag_names": "O," * 9_000}}))
    assert plan.spec is None and any("Names of numbered tags" in problem for problem in plan.problems)


def test_recommended_methods_and_the_chosen_one_stand_in_sight(service: Service, base: int) -> None:
    html = methods_html(service.planning.methods(base, "chat"), "dora")
    near, more = html.split('<details class="more-methods"')
    assert 'value="lora"' in near and 'value="full"' in near
    assert 'value="dora" checked' in near
    assert 'value="bitfit"' in more and "no biases" in more
    assert html.count('type="radio"') == len(all_methods())


def test_a_method_that_is_none_is_refused_in_words() -> None:
    event = SimpleNamespace(_data={"action": "choose", "id": 0, "value": "<script>"})
    with pytest.raises(UserError, match="unknown"):
        chosen_method(event)  # type: ignore[arg-type]


def test_layers_are_shown_by_their_real_names_with_what_each_adds(service: Service, base: int) -> None:
    shape = service.models.base(base).shape
    html = layers_html("lora", {"targets": "attention", "r": 4}, shape).replace("<wbr>", "")
    assert "self_attn.q_proj" in html and "mlp.up_proj" not in html
    assert f"{4 * (64 + 64):,}" in html  # A [4, 64] and B [64, 4] beside q_proj
    assert "How to choose layers" in html
    assert layers_html("bitfit", {}, shape) == ""


def test_what_was_typed_is_shown_again_after_a_reload(service: Service, base: int, labelled: int) -> None:
    import json

    with gr.Blocks():
        widgets = Widgets()
    choosing = Choosing(service, widgets)
    shown = choosing.open(request(dataset=str(labelled), base=str(base)), "")
    values = [_value(shown.get(each, each.value)) for each in widgets.inputs]
    values[widgets.inputs.index(widgets.name)] = "mine"
    values[widgets.inputs.index(widgets.training["epochs"])] = 7
    kept = json.dumps({"version": widgets.version, "values": values})
    again = choosing.open(request(dataset=str(labelled), base=str(base)), kept)
    assert again[widgets.name] == "mine"
    assert again[widgets.training["epochs"]] == 7
    for void in ("", "{", "[]", '{"version": "other"}', json.dumps({"version": widgets.version, "values": [1]})):
        assert choosing.open(request(dataset=str(labelled), base=str(base)), void)[widgets.name] == ""


def _value(change: Any) -> Any:
    if isinstance(change, dict):
        return change.get("value")
    return change.value if hasattr(change, "value") and hasattr(change, "_id") else change


def test_a_plan_that_ends_after_a_newer_one_shows_nothing(
    service: Service, base: int, labelled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gr.Blocks():
        widgets = Widgets()
    starting = Starting(service, widgets)
    shown = Choosing(service, widgets).open(request(dataset=str(labelled), base=str(base)), "")
    values = [_value(shown.get(each, each.value)) for each in widgets.inputs]
    plan = service.planning.plan
    newer: list[Any] = []

    def overtaken(*given: Any) -> Any:
        if not newer:
            newer.append(None)
            newer[0] = starting.plan(request(order=2), *values)
        return plan(*given)

    monkeypatch.setattr(service.planning, "plan", overtaken)
    assert starting.plan(request(order=1), *values) == {}
    assert widgets.summary in newer[0]
