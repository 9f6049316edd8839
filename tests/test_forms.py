"""Forms come from fields alone: every setting of every method and task has a widget, and comes back as it went in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import gradio as gr
import pytest
from pydantic import BaseModel, Field

from app.forms import Form, Forms, widget
from jobs.errors import UserError
from jobs.fields import extra_of, zero_of
from jobs.inference.sampling import Sampling
from jobs.methods import all_methods
from jobs.spec import TrainingParams
from jobs.tasks import all_tasks

KINDS: dict[str, type[BaseModel]] = {
    "training": TrainingParams,
    "sampling": Sampling,
    **{name: type(method).Params for name, method in all_methods().items()},
    **{name: type(task).Params for name, task in all_tasks().items()},
}


@pytest.fixture(autouse=True)
def layout() -> Iterator[None]:
    with gr.Blocks():
        yield


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_setting_has_a_widget_with_its_title_and_help(kind: type[BaseModel]) -> None:
    form = Form(kind)
    assert set(form.names) == set(kind.model_fields)
    for name, component in zip(form.names, form.components, strict=True):
        field = kind.model_fields[name]
        assert component.label == (f"{field.title} (0: {zero_of(field)})" if zero_of(field) else field.title)
        assert component.info == kind.model_fields[name].description  # type: ignore[attr-defined]
        assert component.label
        assert component.info  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_what_the_form_shows_comes_back_as_the_same_settings(kind: type[BaseModel]) -> None:
    form = Form(kind)
    assert form.read(form.show(kind())) == kind()
    assert form.values([component.value for component in form.components]) == kind().model_dump()


def test_a_field_drawn_elsewhere_still_belongs_to_the_form() -> None:
    form = Form(TrainingParams, without=("leave_out_bad_rows",))
    assert "leave_out_bad_rows" not in form.names
    box = form.add("leave_out_bad_rows")
    assert isinstance(box, gr.Checkbox)
    assert form.read(form.show({"leave_out_bad_rows": True})).leave_out_bad_rows


def test_a_small_number_is_typed_as_text_in_any_notation() -> None:
    form = Form(TrainingParams)
    assert isinstance(form["learning_rate"], gr.Textbox)
    shown = form.show({"learning_rate": 2e-4})
    assert shown[form.names.index("learning_rate")] == "0.0002"
    for typed in ("2e-4", "0.0002", " 0,0002 "):
        shown[form.names.index("learning_rate")] = typed
        assert form.read(shown).learning_rate == pytest.approx(2e-4)


def test_every_wrong_value_is_told_at_once() -> None:
    form = Form(TrainingParams)
    brought = form.show({"learning_rate": 5, "epochs": None})
    brought[form.names.index("batch_size")] = 2.5
    with pytest.raises(UserError) as caught:
        form.read(brought)
    assert caught.value.problems == (
        "You set Learning rate to 5: the most is 1.",
        "Epochs is empty. Give a number above 0 up to 100.",
        "You set Micro-batch to 2.5: it must be a whole number.",
    )


class Odd(BaseModel):
    few: Literal["one-way", "two_ways"] = Field("one-way", title="Few")
    many: Literal["a", "b", "c", "d", "e"] = Field("a", title="Many", json_schema_extra={"labels": {"a": "Alpha"}})
    share: float = Field(0.5, ge=0, le=1, title="Share")
    free: float = Field(1.0, title="Free")
    essay: str = Field("", max_length=5_000, title="Essay")
    rare: int = Field(3, ge=0, title="Rare", json_schema_extra={"advanced": True})


def test_type_and_limits_choose_the_widget() -> None:
    form = Form(Odd)
    kinds = {name: type(component) for name, component in zip(form.names, form.components, strict=True)}
    assert kinds == {
        "few": gr.Radio,
        "many": gr.Dropdown,
        "share": gr.Slider,
        "free": gr.Number,
        "essay": gr.Textbox,
        "rare": gr.Number,
    }
    assert form["few"].choices == [("One way", "one-way"), ("Two ways", "two_ways")]  # type: ignore[attr-defined]
    assert form["many"].choices[0] == ("Alpha", "a")  # type: ignore[attr-defined]
    assert form.names[-1] == "rare"  # the advanced ones come last


def test_a_type_without_a_widget_is_refused() -> None:
    class Strange(BaseModel):
        thing: dict[str, Any] = Field({}, title="Thing")

    with pytest.raises(TypeError, match="thing"):
        widget("thing", Strange.model_fields["thing"])


METHODS = {name: type(method).Params for name, method in all_methods().items()}


def test_alike_fields_of_several_models_share_one_widget() -> None:
    forms = Forms(METHODS)
    fields = sum(len(kind.model_fields) for kind in METHODS.values())
    assert len(forms.components) < fields / 2
    brought = [component.value for component in forms.components]
    for name, kind in METHODS.items():
        assert set(forms.values(name, brought)) == set(kind.model_fields)


@pytest.mark.parametrize("name", METHODS)
def test_one_model_of_several_is_shown_and_read_back_whole(name: str) -> None:
    forms = Forms(METHODS, apart=("targets",))
    forms.draw_apart()
    kind = METHODS[name]
    shown = forms.show(name, {})
    visible = [component for component in forms.components if shown[component]["visible"]]
    for_others = sum("where" in extra_of(field) for field in kind.model_fields.values())
    assert len(kind.model_fields) - for_others <= len(visible) <= len(kind.model_fields)
    brought = [shown[component].get("value", component.value) for component in forms.components]
    assert kind(**forms.values(name, brought)) == kind()
    assert not any(change["visible"] for change in forms.show(None, {}).values())


def test_a_setting_that_another_gives_its_meaning_is_shown_with_it_alone() -> None:
    forms = Forms(METHODS)

    def seen(name: str, **settings: Any) -> set[str]:
        shown, follows = forms.show(name, settings), forms.follow(name, settings)
        assert set(follows) <= set(forms.following)
        assert all(shown[component]["visible"] == change["visible"] for component, change in follows.items())
        return {str(component.label) for component in forms.components if shown[component]["visible"]}

    usual = seen("lora")
    assert {"Base weights", "Depth"} <= usual
    assert not {"Double quantization", "How many layers", "Layer names"} & usual
    assert seen("lora", base_weights="4-bit") - usual == {"Double quantization"}
    assert seen("lora", base_weights="8-bit") == usual
    assert seen("lora", depth="last") - usual == {"How many layers"}
    assert seen("lora", targets="names") - usual == {"Layer names"}
    assert "Double quantization" in seen("qlora"), "its base always has 4 bits"


def test_what_is_left_empty_and_hidden_stands_for_its_default() -> None:
    """Emptied, then hidden by what gave it its meaning, it forbade Start, and nobody saw where."""
    forms = Forms(METHODS)
    shown = forms.show("lora", {"depth": "last"})
    brought = [
        None if component.label == "How many layers" else shown[component].get("value", component.value)
        for component in forms.components
    ]
    assert forms.values("lora", brought)["depth_layers"] is None, "told to be empty where it is seen"
    hidden = [
        "all" if component.label == "Depth" else value
        for component, value in zip(forms.components, brought, strict=True)
    ]
    assert METHODS["lora"](**forms.values("lora", hidden)) == METHODS["lora"]()


def test_what_zero_means_stands_at_every_limit_that_it_lifts() -> None:
    labels = {component.label for component in Form(TrainingParams).components}
    assert {
        "Memory limit (GB) (0: all that is free)",
        "Early stop after (0: off)",
        "Most steps (0: by the epochs)",
    } <= labels
