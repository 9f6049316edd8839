"""What the pages render and decide by themselves; tests/browser walks them in real Chromium."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import gradio as gr
import pytest
from gradio.context import LocalContext

from app import ui
from app.actions import action_html, action_of
from app.answers import Who, answer_html, history_html, live_html, panes_html
from app.callbacks import ORDER, Latest, guarded, query_number
from app.components import range_text
from app.drafts import Checks, Starts
from app.pages.datasets import datasets_html
from app.pages.samples import again_html
from app.preflight import histogram_html, preview_html, report_html
from app.run_words import full
from app.train.summary import check_line_html, summary_html, words_html
from jobs.errors import UserError
from jobs.inference.sampling import Sampling
from jobs.service import Service
from jobs.service.chats import AnswerView, Delta
from jobs.service.datasets import BadRow, DatasetView, Preflight, RowPreview, Segment
from jobs.service.mending import MendRef
from jobs.service.planning import Draft, Plan
from jobs.service.samples import SampleView
from storage.files import Home

EVIL = "<script>alert(1)</script> ${1+1} {{value}}"


def request(page: str = "a", order: int | None = None, **query: str) -> Any:
    """What a callback gets of its page; `order` is the number that the page gave the event."""
    headers = {} if order is None else {ORDER: str(order)}
    return SimpleNamespace(session_hash=page, query_params=query, headers=headers)


@contextmanager
def asked_by(page: str, order: int | None) -> Iterator[None]:
    """Callbacks that begin in here are this event's of this page, as Gradio tells them."""
    token = LocalContext.request.set(request(page, order))
    yield
    LocalContext.request.reset(token)


def preflight(**values: Any) -> Preflight:
    found: dict[str, Any] = {
        "rows": 10,
        "good_rows": 8,
        "bad_rows": 2,
        "bad": (BadRow(row=3, reason="the answer is empty"), BadRow(row=7, reason=EVIL)),
        "reasons": {"the answer is empty": 1, EVIL: 1},
        "truncated_rows": 1,
        "tokens": 100,
        "trained_tokens": 40,
        "longest": 30,
        "median": 10,
        "p95": 28,
        "histogram": ((0, 16, 7), (16, 32, 1)),
        "example_prompts": (),
        "seconds": 0.2,
    }
    return Preflight(**found | values)


def harmless(html: str) -> bool:
    return "<script" not in html and "${" not in html and "{{" not in html


def test_what_a_check_found_worth_knowing_is_on_both_pages() -> None:
    for bad in (0, 2):
        check = preflight(bad_rows=bad, notes=("Earlier answers are read but not trained.", EVIL))
        for html in (report_html(check, 20), check_line_html(check, 1, 20)):
            assert "Earlier answers are read but not trained." in html
            assert harmless(html)
    assert "note" not in check_line_html(preflight(), 1, 20)


def test_a_guarded_stream_without_a_yield_changes_nothing() -> None:
    with gr.Blocks():
        notice = gr.HTML()

    @guarded(notice)
    def nothing_to_do() -> Iterator[dict[Any, Any]]:
        yield from ()

    assert list(nothing_to_do()) == [{notice: gr.skip()}]


def test_a_guarded_callback_tells_a_user_error_in_its_own_words() -> None:
    with gr.Blocks():
        notice, other = gr.HTML(), gr.HTML()

    @guarded(notice)
    def fail(words: str) -> dict[Any, Any]:
        raise UserError(words, "And one thing more.")

    @guarded(notice)
    def stream(words: str) -> Iterator[dict[Any, Any]]:
        yield {other: "on the way"}
        raise UserError(words)

    told = fail(EVIL)[notice]
    assert "And one thing more." in told
    assert harmless(told)
    steps = list(stream("No such row."))
    assert steps[0] == {notice: "", other: "on the way"}
    assert "No such row." in steps[1][notice]


def test_an_unexpected_error_is_one_sentence_on_the_page_and_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with gr.Blocks():
        notice = gr.HTML()

    @guarded(notice)
    def fail() -> dict[Any, Any]:
        raise RuntimeError("wires crossed")

    with caplog.at_level(logging.ERROR):
        told = fail()[notice]
    assert "logs/server.log" in told
    assert "wires" not in told
    assert "wires crossed" in caplog.text


def test_an_earlier_callback_that_ends_late_leaves_the_notice_to_the_later_one() -> None:
    page, other = uuid4().hex, uuid4().hex
    with gr.Blocks():
        notice, elsewhere = gr.HTML(), gr.HTML()

    def say(order: int | None, words: Any = None, box: gr.HTML = notice, where: str = page) -> Any:
        @guarded(box)
        def callback() -> dict[Any, Any]:
            if isinstance(words, UserError):
                raise words
            return {} if words is None else {box: words}

        with asked_by(where, order):
            return callback()[box]

    nothing = gr.skip()
    assert say(1) == nothing  # a new page has nothing to empty
    assert say(4, "Choose who answers.") == "Choose who answers."
    assert say(2) == nothing  # neither emptied ...
    assert say(3, "Kept.") == nothing  # ... nor replaced by what was asked for before
    assert say(2, box=elsewhere) == nothing
    assert say(2, where=other) == ""  # what stands in a page that is not known is not known either
    assert say(5) == ""
    assert say(6) == nothing
    assert say(8, "Kept.") == "Kept."
    both = say(7, UserError("The model has gone."))  # an error is never lost
    assert both.index("The model has gone.") < both.index("Kept.")
    assert say(None) == ""  # without a number: the newest


def test_a_stream_says_its_words_until_a_later_callback_has_said_its_own() -> None:
    page = uuid4().hex
    with gr.Blocks():
        notice = gr.HTML()

    @guarded(notice)
    def long() -> Iterator[dict[Any, Any]]:
        yield {notice: "half"}
        yield {}
        yield {notice: "done"}

    @guarded(notice)
    def short() -> dict[Any, Any]:
        return {notice: "Kept."}

    with asked_by(page, 1):
        steps = long()
        assert next(steps) == {notice: "half"}
    assert next(steps) == {notice: ""}
    with asked_by(page, 2):
        assert short() == {notice: "Kept."}
    assert next(steps) == {notice: gr.skip()}


def test_only_the_newest_check_of_a_page_goes_on() -> None:
    latest = Latest(remembered=2)
    first, elsewhere = latest.begin(request("a")), latest.begin(request("b"))
    assert first()
    second = latest.begin(request("a"))
    assert (first(), second(), elsewhere()) == (False, True, True)
    later, earlier = latest.begin(request("a", 9)), latest.begin(request("a", 8))  # they overtook one another
    assert (second(), later(), earlier()) == (False, True, False)


@pytest.mark.parametrize(
    ("text", "number"), [("7", 7), ("", None), ("-1", None), ("x", None), ("١", None), ("9" * 30, None)]
)
def test_a_number_in_the_address_is_read_or_passed_over(text: str, number: int | None) -> None:
    assert query_number(request(dataset=text), "dataset") == number


def test_every_token_of_a_row_is_shown_as_what_it_is() -> None:
    html = preview_html(
        RowPreview(
            row=1,
            tokens=3,
            trained_tokens=1,
            cut_tokens=1,
            segments=(
                Segment(text="<|user|>\n", kind="context"),
                Segment(text=EVIL, kind="trained"),
                Segment(text="x", kind="cut"),
            ),
            problem=None,
            raw="",
        )
    )
    assert html.count('class="trained"') == 2  # the legend and the token
    assert "1 trained" in html
    assert "1 cut off" in html
    assert "&lt;|user|&gt;" in html
    assert harmless(html)


def test_a_bad_row_is_shown_with_its_reason_and_as_it_was_read() -> None:
    html = preview_html(
        RowPreview(row=3, tokens=0, trained_tokens=0, cut_tokens=0, segments=(), problem="it has no answer.", raw=EVIL)
    )
    assert "Row 3 cannot be used: it has no answer." in html
    assert harmless(html)


def test_the_histogram_marks_where_rows_are_cut() -> None:
    html = histogram_html(preflight(), 20)
    assert "cut at 20" in html
    assert "left:62.50%" in html
    assert "cut at" not in histogram_html(preflight(), 512)
    assert histogram_html(preflight(histogram=()), 512) == ""


def test_every_bad_row_is_listed_by_number_after_the_totals() -> None:
    html = report_html(preflight(), 20)
    assert 'data-id="3"' in html
    assert 'data-id="7"' in html
    assert html.index("reasons") < html.index('data-id="3"')
    assert harmless(html)


def test_the_train_page_says_how_many_rows_are_bad_and_why() -> None:
    html = check_line_html(preflight(), 4, 20)
    assert "2 of 10 rows cannot be used" in html
    assert "Row 3: the answer is empty" in html
    assert "dataset?id=4" in html
    assert harmless(html)
    assert "All 10 rows can be used" in check_line_html(preflight(bad_rows=0, bad=()), 4, 20)


def test_a_warning_looks_like_one_and_a_note_does_not() -> None:
    plan = Plan.model_construct(problems=("No.",), warnings=(f"Only 3 rows. {EVIL}",), notes=("By the way.",))
    html = words_html(plan)
    assert html.index("No.") < html.index('note warn"><p>Only 3 rows') < html.index('note info"><p>By the way')
    assert harmless(html)


@pytest.mark.parametrize(("count", "s"), [(1, ""), (2, "s")])
def test_before_start_one_thing_is_not_called_several(count: int, s: str) -> None:
    figures = ("trainable_parameters", "train_rows", "validation_rows", "steps")
    said = dict.fromkeys(figures, count) | dict.fromkeys(("trainable_percent", "seconds", "untold", "loop", "estimate"))
    plan = Plan.model_construct(**said, steps_note="")
    model = SimpleNamespace(name="Tiny", shape=SimpleNamespace(layers=count))
    html = summary_html(plan, model, "Ships", "LoRA")  # type: ignore[arg-type]
    words = re.findall(r"</strong> ([^<]+)</dd>", html)
    assert words == [f"parameter{s}", f"layer{s}", f"row{s}", f"row{s} to validate with", f"step{s}"]


def test_a_time_is_a_range_where_runs_took_differently() -> None:
    assert range_text(120, 125) == "2 min 5 s"
    assert range_text(120, 180) == "2 min to 3 min"


def test_an_answer_is_markdown_but_never_html_nor_a_request() -> None:
    html = answer_html(
        f"**Bold** and `code`\n\n- one\n\n{EVIL}\n\n![x](http://far.away/x.png) [y](javascript:alert(1))"
    )
    assert "<strong>Bold</strong>" in html
    assert "<li>one</li>" in html
    assert "<img" not in html
    assert 'href="javascript' not in html
    assert 'rel="noopener noreferrer" href="http://far.away/x.png"' in html  # pressed by a person, or not at all
    assert harmless(html)


def test_prompts_and_pane_names_stay_text() -> None:
    answer = AnswerView(
        id=5, turn=0, pane=0, adapter_id=None, prompt=EVIL, answer=EVIL, tokens=4, seconds=2.0, finish="length"
    )
    history = history_html((answer,), [Who(name=EVIL)])
    assert "4 tokens in 2 s · 2.0 tokens/s · reached the maximum tokens" in history
    assert 'data-action="keep" data-id="5"' in history
    assert harmless(history)
    delta = Delta(pane=1, text=EVIL, tokens=1, seconds=1, finish=None)
    live = live_html(EVIL, {1: delta}, [Who(name=EVIL), Who(name="b")], "Loading")
    assert live.count("Loading") == 1  # the pane that has not begun
    assert live.count("writing") == 1
    assert harmless(live)


@pytest.mark.parametrize("kept", ("Ahoy.", "Ahoy.\ufffd"), ids=("whole", "cut, from before that was dropped"))
def test_an_answer_made_again_is_the_kept_one_but_for_half_a_character(kept: str) -> None:
    sample = SampleView(
        id=1, base_model="Tiny", base_model_id=1, adapter=None, adapter_id=None, messages=(), answer=kept,
        sampling=Sampling(), engine={}, note="", created_at=datetime.now(UTC),
    )  # fmt: skip
    assert "Identical" in again_html(sample, "Ahoy.", None)
    assert "Different" in again_html(sample, "Aho", None)


def test_a_deleted_adapters_column_stays_and_its_place_in_later_turns_says_why() -> None:
    said = [
        AnswerView(
            id=turn * 2 + pane, turn=turn, pane=pane, adapter_id=None, prompt="Ahoy?", answer=f"In {turn}, {pane}.",
            tokens=4, seconds=2.0, finish="end",
        )
        for turn, pane in ((0, 0), (0, 1), (1, 1))
    ]  # fmt: skip
    panes = [Who(name="Deleted adapter", gone=True), Who(name="Pirate")]
    first, second = history_html(tuple(said), panes).split("</section>")[:2]
    assert first.index("In 0, 0.") < first.index("In 0, 1.") and first.count("pane gone") == 1
    assert second.index("It was deleted") < second.index("In 1, 1.") and second.count("Keep<") == 1
    live = live_html("And now?", {}, panes, "Thinking")
    assert live.index("It was deleted") < live.index("Thinking") and live.count("Thinking") == 1
    assert panes_html(panes).count("class=gone") == 1


def test_a_button_asks_with_text_that_stays_text() -> None:
    assert harmless(action_html("delete", 1, "Delete", question=EVIL, value=EVIL))


def test_a_button_that_is_not_ours_is_refused_in_words() -> None:
    event = SimpleNamespace(_data={"action": "delete", "id": "no number"})
    with pytest.raises(UserError):
        action_of(event)  # type: ignore[arg-type]


def test_an_empty_list_of_datasets_says_what_works() -> None:
    assert "messages" in datasets_html([])


class Started:
    """Stands where runs are started, and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.runs = self

    def start(self, spec: Any, base_model_id: int, dataset_id: int) -> Any:
        self.count += 1
        return SimpleNamespace(id=self.count)


def test_a_double_click_on_start_queues_one_run() -> None:
    starts, service = Starts(), Started()
    spec, other = (SimpleNamespace(model_dump_json=lambda exclude, text=text: text) for text in ("one", "two"))
    first = starts.once("page", service, spec, 1, 1)  # type: ignore[arg-type]
    assert starts.once("page", service, spec, 1, 1) == first  # type: ignore[arg-type]
    assert starts.once("page", service, other, 1, 1) != first  # type: ignore[arg-type]
    assert starts.once("another page", service, spec, 1, 1) == 3  # type: ignore[arg-type]


def test_a_data_check_is_remembered_until_its_settings_change(home: Home, tiny_llama: Path, tmp_path: Path) -> None:
    service = Service(home)
    try:
        base = service.models.add_folder(tiny_llama)
        file = tmp_path / "pairs.csv"
        file.write_text("question,answer\n" + "how many?,one\n" * 5 + "nothing?,\n")
        dataset = next(item for item in service.datasets.add(file) if isinstance(item, DatasetView))
        draft: Draft = service.planning.defaults(base.id, dataset.id)
        checks = Checks(service)
        assert checks.get(draft) is None
        report = [news for news in checks.run(draft) if isinstance(news, Preflight)][-1]
        assert report.bad_rows == 1
        assert checks.get(draft) == report
        assert checks.get(draft.model_copy(update={"training": {**draft.training, "max_length": 33}})) is None
        plan = service.planning.plan(draft, checks.get(draft))
        assert any("leave them out" in problem for problem in plan.problems)
        service.mending.apply(dataset.id, MendRef(name="drop_bad"))
        assert checks.get(draft) is None, "its rows are other ones now"
    finally:
        service.close()


def test_a_full_fine_tuning_leaves_a_model_and_anything_else_an_adapter() -> None:
    assert [full(name) for name in ("full", "lora", "bitfit", "of a later version")] == [True, False, False, False]


def test_no_event_of_the_train_page_has_its_hundred_settings_told_that_they_are_waited_for(home: Home) -> None:
    with contextlib.closing(Service(home)) as service:
        config = ui.build(service).get_config_file()
    own = set(config["page"]["train"]["dependencies"])
    shown = [each["show_progress_on"] for each in config["dependencies"] if each["id"] in own and each["backend_fn"]]
    assert shown and all(each is not None and len(each) == 1 for each in shown)
