"""Try what does not chat: classifiers, taggers, readers and translators, several of one task side by side.

The address holds who is asked (/predict?adapter=4, /predict?adapter=4,7). Examples come from the data that the first
of them was trained with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import gradio as gr

from app.actions import action_html, action_list, action_of
from app.blocks import markup
from app.callbacks import QUIET, Latest, Shown, guarded
from app.components import card, duration_text, escape, page_header
from app.predictions import prediction_html
from jobs.errors import UserError
from jobs.service import Service
from jobs.service.predictions import MOST_ADAPTERS, Answered, HeadView, input_label
from jobs.service.trials import inputs_of, rows_to_try
from jobs.tasks import all_tasks

SLUG = "predict"
TITLE = "Try"
NAV = None
ORDER = 52
ICON = ""

EXAMPLES = 5
KEEP_ADDRESS = """(chosen) => {
  const query = (chosen || []).length ? '?adapter=' + chosen.join(',') : '';
  history.replaceState(history.state, '', location.pathname + query);
}"""
NONE_YET = (
    '<div class="card empty"><h2>Nothing to try yet</h2><p>Runs that classify, tag, find answers, translate or predict '
    'numbers leave an adapter here. What chats is in the <a href="playground">playground</a>.</p>'
    '<div class="buttons"><a class="button primary" href="train">Train one</a></div></div>'
)


def build(service: Service) -> None:
    page_header("Try", "Write something, and see what your adapters say of it, side by side.")
    notice = markup()
    names = list(dict.fromkeys(name for task in all_tasks().values() for name in task.inputs))
    empty = markup()
    with gr.Row(elem_classes="playground", visible=False) as page:
        with gr.Column(min_width=0, elem_classes="plain"):
            with card():
                boxes = {
                    name: gr.Textbox(
                        label=input_label(name),
                        lines=4 if name in ("text", "context") else 1,
                        max_lines=14,
                        interactive=True,
                        visible=False,
                    )
                    for name in names
                }
                with gr.Row(elem_classes="try-row"):
                    go = gr.Button("Try it", variant="primary", elem_classes="fit")
                examples = action_list()
            trouble = markup()  # near the button: what comes of pressing it
            said = markup()
        with gr.Column(elem_classes="controls", min_width=0), gr.Column(elem_classes="card"):
            task = gr.Radio(label="Task", interactive=True, visible=False, elem_classes="who")
            who = gr.CheckboxGroup(
                label="Who is asked", info=f"Up to {MOST_ADAPTERS} of one task.", interactive=True, elem_classes="who"
            )
            about = markup()
    latest = Latest()

    def examples_of(chosen: list[str]) -> tuple[list[dict[str, str]], bool]:
        if not chosen:
            return [], False
        head = service.predictions.head(int(chosen[0]))
        return rows_to_try(service.runs, head.adapter.run_id, tuple(head.inputs), EXAMPLES)

    def for_task(heads: list[HeadView], name: str, chosen: list[str]) -> Shown:
        """Boxes, choices and examples for the adapters of one task."""
        of_task = [head for head in heads if head.task == name]
        chosen = [each for each in chosen if each in [str(head.adapter.id) for head in of_task]]
        chosen = chosen or [str(of_task[0].adapter.id)]
        first = next(head for head in of_task if str(head.adapter.id) == chosen[0])
        takes = inputs_of(service.runs, first.adapter.run_id, first.inputs)
        return {
            task: gr.Radio(
                choices=[(head.task_label, head.task) for head in {head.task: head for head in heads}.values()],
                value=name,
                visible=len({head.task for head in heads}) > 1,
            ),
            who: gr.CheckboxGroup(
                choices=[(head.adapter.title, str(head.adapter.id)) for head in of_task], value=chosen
            ),
            **{
                box: gr.Textbox(
                    visible=each in takes,
                    info=None if takes.get(each, True) else "May stay empty.",
                )
                for each, box in boxes.items()
            },
            **for_who(heads, chosen),
            **{said: "", trouble: ""},
        }

    def for_who(heads: list[HeadView], chosen: list[str]) -> Shown:
        asked = [head for head in heads if str(head.adapter.id) in chosen]
        return {examples: examples_html(*examples_of(chosen)), about: about_html(asked)}

    def warm(adapter_id: int) -> None:
        """Someone is about to ask: load while they write, unless a run in progress wants the machine."""
        if not any(run.state.active for run in service.runs.list(limit=20)):
            service.predictions.warm(adapter_id)

    @guarded(notice)
    def show(request: gr.Request) -> Shown:
        wanted = [each for each in str(request.query_params.get("adapter", "")).split(",") if each.isdecimal()]
        heads = service.predictions.adapters()
        if wanted and wanted[0] not in [str(head.adapter.id) for head in heads]:
            service.predictions.head(int(wanted[0][:18]))  # says why it cannot be asked
        if not heads:
            return {empty: NONE_YET}
        first = next((head for head in heads if str(head.adapter.id) in wanted[:1]), heads[0])
        warm(first.adapter.id)
        return {page: gr.Row(visible=True), empty: "", **for_task(heads, first.task, wanted)}

    @guarded(notice)
    def choose_task(name: str) -> Shown:
        return for_task(service.predictions.adapters(), name, [])

    @guarded(notice)
    def choose_who(chosen: list[str]) -> Shown:
        return for_who(service.predictions.adapters(), chosen)

    @guarded(notice)
    def take_example(event: gr.EventData, chosen: list[str]) -> Iterator[Shown]:
        found, _ = examples_of(chosen)
        number = action_of(event).id
        if not 0 <= number < len(found):
            raise UserError("That example is gone. Reload the page.")
        yield {boxes[name]: found[number].get(name, "") for name in boxes}

    @guarded(trouble)
    def ask(request: gr.Request, chosen: list[str], name: str, *texts: str | None) -> Iterator[Shown]:
        newest = latest.begin(request)
        yield {said: ""}  # the earlier answer is none to what is asked now
        if not chosen:
            raise UserError("Choose who is asked.")
        takes = all_tasks()[name].inputs
        given = {each: text or "" for each, text in zip(boxes, texts, strict=True) if each in takes}
        heads = {str(head.adapter.id): head for head in service.predictions.adapters(name)}
        asked = [heads[each] for each in chosen if each in heads]
        tags = tags_of(heads.values())
        answers: list[Answered] = []
        doing = dict.fromkeys((head.adapter.id for head in asked), "Waits for its turn")

        def shown() -> Shown:
            done = [answer.adapter_id for answer in answers]
            left = [(head.adapter.title, doing[head.adapter.id]) for head in asked if head.adapter.id not in done]
            return {said: answers_html(answers, left, given, tags)}

        try:
            for news in service.predictions.ask([int(each) for each in chosen], [given]):
                if not newest():
                    return
                if isinstance(news, Answered):
                    answers.append(news)
                else:
                    doing |= dict.fromkeys(news.adapter_ids, news.text)
                yield shown()
        except Exception:
            if newest():
                yield {said: answers_html(answers, [], given, tags) if answers else ""}
            raise

    again: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
    # A second press ends the first, which may be waiting for memory (see `latest`).
    beside: dict[str, Any] = {**QUIET, "trigger_mode": "multiple"}
    chooses = [task, who, *boxes.values(), examples, about, said, trouble]
    inputs = [who, task, *boxes.values()]
    gr.on(None, show, inputs=[], outputs=[page, empty, *chooses, notice], **QUIET)
    task.input(choose_task, task, [*chooses, notice], **again).then(None, who, None, js=KEEP_ADDRESS)
    who.input(choose_who, who, [examples, about, notice], **again).then(None, who, None, js=KEEP_ADDRESS)
    examples.click(take_example, who, [*boxes.values(), notice], **again).then(ask, inputs, [said, trouble], **beside)
    single = [box.submit for name, box in boxes.items() if name == "question"]
    gr.on([go.click, *single], ask, inputs, [said, trouble], scroll_to_output=True, **beside)


def tags_of(heads: Iterable[HeadView]) -> list[str]:
    """What the taggers among them can mark, in one order for the whole page: a tag has one colour, whoever says it."""
    labels = {label for head in heads for label in head.labels}
    return sorted({label[2:] if label[:2] in ("B-", "I-") else label for label in labels} - {"O"})


def answers_html(
    answers: list[Answered], waiting: list[tuple[str, str]], given: dict[str, str], tags: Sequence[str] = ()
) -> str:
    """What each says; who has not said anything yet, and what it waits for. `tags`: see `prediction_html`."""
    panes = [
        f'<article class="pane"><h4>{escape(answer.name)}</h4>{prediction_html(answer.predictions[0], given, tags)}'
        f"{_baseline(answer, given)}"
        f"<footer><span>{escape(_took(answer.seconds))}</span></footer></article>"
        for answer in answers
    ]
    panes += [
        f'<article class="pane"><h4>{escape(name)}</h4><p class="waiting">{escape(status)} ...</p></article>'
        for name, status in waiting
    ]
    many = " many" if len(panes) > 2 else ""
    return f'<div class="panes said{many}" style="--panes:{len(panes)}">{"".join(panes)}</div>'


def _took(seconds: float) -> str:
    return duration_text(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _baseline(answer: Answered, given: dict[str, str]) -> str:
    """What could be said without looking at the text: only worth a look where someone asks."""
    if answer.baseline is None:
        return ""
    return (
        '<details class="baseline"><summary>What one would say without looking</summary>'
        f"{prediction_html(answer.baseline, given)}</details>"
    )


def examples_html(found: list[dict[str, str]], unseen: bool) -> str:
    """Rows to try, one click away."""
    if not found:
        return ""
    rows = "".join(
        f"<li>{action_html('example', number, ' · '.join(text for text in each.values() if text)[:160])}</li>"
        for number, each in enumerate(found)
    )
    which = "that it has not seen" if unseen else "of its data"
    return f'<div class="try-examples"><h3>Or one of the rows {which}</h3><ul>{rows}</ul></div>'


def about_html(asked: list[HeadView]) -> str:
    """Where those who are asked come from."""
    lines = "".join(
        f'<li><a href="run?id={head.adapter.run_id}">{escape(head.adapter.title)}</a>'
        f'<span class="hint">on {escape(head.adapter.base_model)}, reads {head.max_length:,} tokens</span></li>'
        for head in asked
    )
    return f'<ul class="asked">{lines}</ul>' if lines else ""
