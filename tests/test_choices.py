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
from jobs.data.columns import Mapping, Shape
from jobs.errors import UserError
from jobs.hardware import this_machine
from jobs.methods import all_methods
from jobs.presets import PRESETS
from jobs.service import Service
from jobs.service.choices import methods_for
from jobs.service.datasets import DatasetView
from jobs.service.planning import Draft
from jobs.shape import read_shape
from jobs.spec import TrainingParams
from jobs.tasks import all_tasks
from storage.files import Home
from tests import tiny


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
            newer[0] = starting.plan(request(order=2), None, *values)
        return plan(*given)

    monkeypatch.setattr(service.planning, "plan", overtaken)
    assert starting.plan(request(order=1), None, *values) == {}
    assert widgets.summary in newer[0]


@pytest.fixture
def reader(service: Service, tmp_path: Path) -> int:
    return service.models.add_folder(tiny.build_bert(tmp_path / "bert")).id


def test_what_reads_is_preselected_for_texts_to_sort_and_what_writes_for_chats(
    service: Service, base: int, reader: int, labelled: int, tmp_path: Path
) -> None:
    chats = add(service, tmp_path / "chats.csv", "question,answer\n" + "How many?,Three\nWhere?,There\n" * 8)
    with gr.Blocks():
        widgets = Widgets()
    choosing = Choosing(service, widgets)
    assert _value(choosing.open(request(dataset=str(labelled)), "")[widgets.base]) == reader
    assert _value(choosing.open(request(dataset=str(chats)), "")[widgets.base]) == base
    # Until someone chooses, the model follows the dataset.
    assert choosing.dataset(chats, reader, "lora", "quick", "classification", False)[widgets.base] == base
    assert choosing.dataset(labelled, base, "lora", "quick", "chat", True)[widgets.base] == base
    assert choosing.model(labelled, base, "lora", "quick", "classification")[widgets.base_chosen] is True
    assert choosing.open(request(dataset=str(labelled)), "")[widgets.base_chosen] is False
    assert choosing.open(request(dataset=str(labelled), base=str(base)), "")[widgets.base_chosen] is True


def test_questions_with_answers_suggest_a_chat_whatever_else_they_could_be_read_as(
    service: Service, tiny_llama: Path, tmp_path: Path
) -> None:
    """Not the translation for which such pairs would do, nor a model that could learn nothing else."""
    chats = add(service, tmp_path / "chats.csv", "question,answer\n" + "How many are left?,There are three.\n" * 8)
    rewriter = service.models.add_folder(tiny.build_t5(tmp_path / "t5")).id
    base = service.models.add_folder(tiny_llama).id
    with gr.Blocks():
        widgets = Widgets()
    shown = Choosing(service, widgets).open(request(dataset=str(chats)), "")
    assert _value(shown[widgets.base]) == base
    assert shown[widgets.task] == "chat"
    assert "encoder-decoder" not in shown[widgets.task_words]
    assert [each.name for each in service.planning.tasks(chats, base)] == ["chat", "rewrite"]
    assert [each.id for each in service.planning.bases_for(chats)] == [base, rewriter]
    asked = Choosing(service, widgets).open(request(dataset=str(chats), base=str(rewriter)), "")
    assert asked[widgets.task] == "seq2seq"
    assert "This dataset suggests Chat, but" in asked[widgets.task_words]


def test_where_no_task_fits_a_model_that_does_is_one_press_away(
    service: Service, reader: int, tiny_llama: Path, tmp_path: Path
) -> None:
    chats = add(service, tmp_path / "chats.csv", "question,answer\n" + "How many?,Three\nWhere?,There\n" * 8)
    with gr.Blocks():
        widgets = Widgets()
    choosing = Choosing(service, widgets)
    # None is here: the Hub has one. Then one is.
    words = choosing.open(request(dataset=str(chats), base=str(reader)), "")[widgets.task_words]
    assert 'href="models?hub=HuggingFaceTB/SmolLM2-135M-Instruct"' in words
    writer = service.models.add_folder(tiny_llama)
    shown = choosing.open(request(dataset=str(chats), base=str(reader)), "")
    assert f'href="train?dataset={chats}&amp;base={writer.id}"' in shown[widgets.task_words]
    values = [_value(shown.get(each, each.value)) for each in widgets.inputs]
    planned = Starting(service, widgets).plan(request(order=1), None, *values)
    assert f"Train {writer.name}" in planned[widgets.words]
    assert 'class="methods"' in planned[widgets.cards]  # the methods are to be seen all the same


def test_cards_cost_what_their_method_costs_as_it_is_set(service: Service, base: int, labelled: int) -> None:
    def lora(**more: Any) -> Any:
        choices = service.planning.methods(base, "classification", **more)
        return next(each for each in choices if each.name == "lora")

    usual, edited = lora(), lora(edited={"lora": {"r": 64}}, training={"batch_size": 32})
    draft = service.planning.defaults(base, labelled, "lora")
    plan = service.planning.plan(draft.model_copy(update={"method_params": {**draft.method_params, "r": 64}}))
    assert edited.trainable == plan.trainable_parameters  # whose head is known only when the labels are
    assert edited.trainable > usual.trainable and edited.memory > usual.memory
    assert lora(edited={"dora": {"r": 64}}) == usual
    assert lora(edited={"lora": {"r": -3}}, training={"batch_size": "many"}) == usual  # impossible: the preset's


def test_a_card_states_facts_and_advises_nothing_that_is_refused_itself(tmp_path: Path) -> None:
    for build in (tiny.build_llama, tiny.build_bert, tiny.build_t5):
        shape = read_shape(build(tmp_path / build.__name__))
        for task in all_tasks().values():
            if task.check_model(type(task).Params(), shape):
                continue
            choices = methods_for(shape, task, PRESETS["balanced"], TrainingParams(), this_machine())
            refused = {each.label: " ".join(each.problems) for each in choices if each.problems}
            for said in refused.values():
                assert "You chose" not in said
                assert not [label for label in refused if label in said.partition("Choose ")[2]], said


def test_a_setting_that_cannot_be_is_marked_at_its_field(service: Service, base: int, labelled: int) -> None:
    with gr.Blocks():
        widgets = Widgets()
    shown = Choosing(service, widgets).open(request(dataset=str(labelled), base=str(base)), "")
    at = {each: _value(shown.get(each, each.value)) for each in widgets.inputs}
    at[widgets.training["learning_rate"]] = "50"
    at[widgets.training["epochs"]] = None
    starting = Starting(service, widgets)
    marks = starting.plan(request(order=1), None, *at.values())[widgets.marks]
    assert '<li data-field="field-learning-rate">The most is ' in marks
    assert '<li data-field="field-epochs">Epochs is empty. ' in marks
    assert marks.count("<li") == 2
    at[widgets.training["learning_rate"]], at[widgets.training["epochs"]] = "0.001", 1
    at[widgets.training["max_length"]] = 4_000  # more than the tiny model was made for
    marks = starting.plan(request(order=2), None, *at.values())[widgets.marks]
    assert marks.count("<li") == 1 and '<li data-field="field-max-length">' in marks and "was made for" in marks
    at[widgets.training["max_length"]] = 64
    assert starting.plan(request(order=3), None, *at.values())[widgets.marks] == ""


def test_a_page_that_nobody_has_touched_has_a_task_that_its_model_can_do_and_says_you_set_nothing(
    service: Service, base: int, reader: int, tmp_path: Path
) -> None:
    pairs = add(service, tmp_path / "pairs.csv", "en,fr\n" + "One cat,Un chat\nTwo dogs,Deux chiens\n" * 8)
    service.datasets.set_mapping(pairs, Mapping(shape=Shape.REWRITE, columns={"source": "en", "target": "fr"}))
    with gr.Blocks():
        widgets = Widgets()
    shown = Choosing(service, widgets).open(request(dataset=str(pairs)), "")
    assert _value(shown[widgets.base]) == base
    offered = {each.name: each.problems for each in service.planning.tasks(pairs, base)}
    assert offered[shown[widgets.task]] == ()
    refused = [problem for problems in offered.values() for problem in problems]
    assert refused and all(problem.startswith("This dataset suggests ") for problem in refused)
    assert "You set" not in shown[widgets.task_words]


def test_beside_the_steps_stands_that_epochs_decides_nothing(service: Service, base: int, labelled: int) -> None:
    with gr.Blocks():
        widgets = Widgets()
    shown = Choosing(service, widgets).open(request(dataset=str(labelled), base=str(base)), "")
    at = {each: _value(shown.get(each, each.value)) for each in widgets.inputs}
    starting = Starting(service, widgets)
    said = "Epochs (3, which is 27 steps) changes nothing"
    assert said in starting.plan(request(order=1), None, *at.values())[widgets.summary]
    at[widgets.training["min_steps"]] = 0
    assert "changes nothing" not in starting.plan(request(order=2), None, *at.values())[widgets.summary]


def test_start_lists_every_setting_that_cannot_be(service: Service, base: int, labelled: int) -> None:
    with gr.Blocks():
        widgets = Widgets()
    shown = Choosing(service, widgets).open(request(dataset=str(labelled), base=str(base)), "")
    at = {each: _value(shown.get(each, each.value)) for each in widgets.inputs}
    wrong = ("learning_rate", "epochs", "max_length", "batch_size")
    at |= dict.fromkeys((widgets.training[name] for name in wrong), -1)
    with pytest.raises(UserError) as refused:
        list(Starting(service, widgets).start(request(), *at.values()))
    assert len(refused.value.problems) == len(wrong)


def test_a_card_tells_a_limit_that_was_set_from_the_memory_there_is(
    service: Service, base: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = service.planning.methods(base, "chat", training={"memory_limit_gb": 0.1})
    assert "more than allowed" in methods_html(limited, "lora")
    here = this_machine().model_copy(update={"memory_free": 100_000_000})
    monkeypatch.setattr("jobs.service.planning.this_machine", lambda: here)
    assert "more than there is" in methods_html(service.planning.methods(base, "chat"), "lora")


def test_a_chosen_method_stays_in_its_place_while_its_settings_cannot_be(service: Service, base: int) -> None:
    html = methods_html(service.planning.methods(base, "chat"), "bitfit")
    near, more = html.split('<details class="more-methods"')
    assert 'value="bitfit" checked' in near and "no biases" in near
    assert 'value="bitfit"' not in more and html.count('type="radio"') == len(all_methods())


def test_another_press_on_fit_it_for_me_keeps_what_was_changed_and_its_undo(
    service: Service, base: int, labelled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gr.Blocks():
        widgets = Widgets()
    starting = Starting(service, widgets)
    at = {each: each.value for each in widgets.inputs}
    at |= {
        each: _value(shown)
        for each, shown in Choosing(service, widgets).open(request(dataset=str(labelled), base=str(base)), "").items()
        if each in at and _value(shown) is not None
    }
    size, recompute = widgets.training["batch_size"], widgets.training["recompute"]
    at |= {size: 64, recompute: "off", widgets.training["loop"]: "plain", widgets.training["max_length"]: 512}
    first = dict(at)
    whole = service.planning.plan(widgets.settings(list(at.values())).draft).estimate
    assert whole

    def free(bytes_: int) -> None:
        here = this_machine().model_copy(update={"memory_free": bytes_})
        monkeypatch.setattr("jobs.service.planning.this_machine", lambda: here)

    def press(change: Any, fitting: str) -> str:
        """What stands in the hidden box afterwards; the page's settings follow."""
        done = change(fitting, *at.values())
        at.update({each: _value(shown) for each, shown in done.items() if each in at})
        return str(done.get(widgets.fitting, fitting))

    def page(fitting: str) -> tuple[str, bool]:
        """The words, and whether there is an Undo."""
        planned = starting.plan(request(), fitting, *at.values())
        return planned[widgets.fitted], planned[widgets.undo].visible

    free(whole.total - (1 << 20))
    fitting = press(starting.fit, "")
    words, can_undo = page(fitting)
    assert at[size] < 64 and words.count("<li>") == 1 and can_undo
    again = press(starting.fit, fitting)
    assert page(again) == (words, True), "it fits, so that nothing is changed"
    least = service.planning.plan(widgets.settings(list(at.values())).draft).estimate
    assert least
    free(least.total - (1 << 20))  # something else has taken memory meanwhile
    again = press(starting.fit, again)
    more, can_undo = page(again)
    assert more.startswith(words.removesuffix("</ul></div>")) and more.count("<li>") == 2 and can_undo
    free(1 << 20)
    again = press(starting.fit, again)
    assert page(again)[0].count("<li>") == 2 and "is enough" in page(again)[0] and page(again)[1]
    assert press(starting.undo, again) == ""
    assert (at[size], at[recompute]) == (first[size], first[recompute])
