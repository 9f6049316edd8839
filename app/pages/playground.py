"""Base model and adapters answer the same prompt side by side, all at once; chats stay, answers can be kept.

The address holds the chat (/playground?chat=7), or what a new one is with (/playground?adapter=4, ?base=1).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.actions import action_html, action_list, action_of
from app.answers import Who, history_html, live_html, panes_html
from app.blocks import markup
from app.callbacks import QUIET, Shown, guarded, query_number
from app.components import escape, note_html, page_header, when_text
from app.forms import Form
from app.run_words import talks
from jobs.errors import UserError
from jobs.inference.sampling import Sampling
from jobs.service import Service
from jobs.service.chats import MOST_PANES, ChatView, Delta
from jobs.service.models import AdapterView
from jobs.service.playground import Status

SLUG = "playground"
TITLE = "Playground"
NAV = "Playground"
ORDER = 50
ICON = "M5 4h14a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1h-9l-5 4v-4a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1Z"

BARE = "base"  # a pane without an adapter, as the choice's value
REDRAW = 0.08  # seconds between two drawings of a streaming turn
TO_CHAT = "(chat) => { if (chat) history.replaceState(history.state, '', location.pathname + '?chat=' + chat); }"
TO_LAST_TURN = "() => document.querySelector('.turn:last-of-type .panes')?.scrollIntoView({block: 'end'})"
# A growing answer stays in view, unless the reader has scrolled away from its end.
FOLLOW = """
let before = 0;
new MutationObserver(() => {
  const end = element.getBoundingClientRect().bottom;
  const began = !before && element.textContent;
  if (began || (element.textContent && end - innerHeight < 160)) element.scrollIntoView({block: 'end'});
  before = element.textContent.length;
}).observe(element, {childList: true, subtree: true, characterData: true});
"""
# What is said stands above the box, which stays in the window, but for where a phone shows what is below the chat.
IN_VIEW = """
new MutationObserver(() => {
  if (element.textContent.trim()) element.scrollIntoView({block: 'nearest'});
}).observe(element, {childList: true, subtree: true, characterData: true});
"""
# What is asked is what stood in the box at the press; it leaves the box when the server has it (static/app.js).
PRESSED = "(text, ...others) => [Graft.question.read(), ...others]"
TAKEN = "(taken) => { Graft.question.taken(taken); return ''; }"
PUT_BACK = "(unsaid) => { Graft.question.back(unsaid); return ''; }"
# No question of its own to the server: what it would answer could be older than a turn that has ended since.
NOW_KEPT = """(answer) => {
  const button = document.querySelector(`[data-action="keep"][data-id="${answer}"]`);
  if (button) Object.assign(button, {textContent: 'Kept', disabled: true});
}"""
NEW_CHAT = """(base, panes) => {
  const adapter = (panes || []).filter(pane => pane !== 'base')[0];
  const query = adapter ? '?adapter=' + adapter : base ? '?base=' + base : '';
  history.replaceState(history.state, '', location.pathname + query);
}"""


def build(service: Service) -> None:
    page_header("Playground", "Ask once; the base model and its adapters answer side by side.")
    with gr.Row(elem_classes="playground"):
        with gr.Column(elem_classes="conversation card", min_width=0):
            heads = markup()
            history = action_list()
            live = markup(classes="live-turn", js_on_load=FOLLOW)
            with gr.Column(elem_classes="ask-area"):
                notice = markup(js_on_load=IN_VIEW)
                with gr.Row(elem_classes="ask-row"):
                    prompt = gr.Textbox(
                        show_label=False,
                        label="Prompt",
                        placeholder="Ask something",
                        lines=1,  # with more, Enter would not send
                        max_lines=8,
                        elem_classes="prompt-box",
                        interactive=True,
                    )
                    send = gr.Button("Send", variant="primary", min_width=88, elem_classes="send")
                    stop = gr.Button("Stop", variant="stop", min_width=88, elem_classes="send", visible=False)
        with gr.Column(elem_classes="controls", min_width=0):
            with gr.Column(elem_classes="card"):
                new = gr.Button("New chat")
                base = gr.Dropdown(label="Base model", interactive=True)
                panes = gr.CheckboxGroup(
                    label="Who answers", info=f"Up to {MOST_PANES} at once.", interactive=True, elem_classes="who"
                )
                with gr.Accordion("How answers are drawn", open=False, elem_classes="settings"):
                    sampling = Form(Sampling)
            chats = action_list()
    chat_id, kept = (gr.Number(visible=False) for _ in range(2))
    asked, taken, unsaid = (gr.Textbox(visible=False) for _ in range(3))

    def who_answers(base_id: int, adapters: tuple[int | None, ...]) -> list[Who]:
        known: dict[int | None, str] = {each.id: each.title for each in service.models.adapters(base_id)}
        known[None] = service.models.base(base_id).name
        return [Who(name=known.get(each, "Deleted adapter"), gone=each not in known) for each in adapters]

    def chatting(base_id: int | None) -> list[AdapterView]:
        """The adapters that answer in a chat; the others have a page of their own."""
        return [each for each in service.models.adapters(base_id) if talks(each.task)] if base_id else []

    def pane_choices(base_id: int | None) -> list[tuple[str, str]]:
        adapters = chatting(base_id)
        return [("Base model, as it is", BARE), *((each.title, str(each.id)) for each in adapters)]

    def read_panes(chosen: list[str]) -> tuple[int | None, ...]:
        if not chosen:
            raise UserError("Choose who answers: the base model, an adapter, or several.")
        if len(chosen) > MOST_PANES:
            raise UserError(f"You chose {len(chosen)} to answer; at most {MOST_PANES} can at once. Take some away.")
        ordered = sorted(chosen, key=lambda value: value != BARE)  # the base model at the left
        return tuple(None if value == BARE else int(value) for value in ordered)

    def with_chat(chat: ChatView) -> Shown:
        who = who_answers(chat.base_model_id, chat.panes)
        return {heads: panes_html(who), history: history_html(chat.answers, who), live: ""}

    def nothing_yet(base_id: int | None, chosen: list[str]) -> Shown:
        if not base_id or not chosen:
            return {heads: "", history: EMPTY, live: ""}
        who = who_answers(base_id, read_panes(chosen))
        return {heads: panes_html(who), history: EMPTY, live: ""}

    def earlier(current: int | None) -> Shown:
        return {chats: chats_html(service.playground.chats.list(also=current), current)}

    def warm(base_id: int | None) -> None:
        """Someone is about to ask: load the model while they write, unless a run in progress wants the machine."""
        if base_id and not any(run.state.active for run in service.runs.list(limit=20)):
            service.playground.warm(base_id)

    @guarded(notice)
    def show(request: gr.Request) -> Shown:
        bases = [each for each in service.models.bases() if each.shape.family == "decoder"]
        shown: Shown = earlier(query_number(request, "chat"))
        chat, adapter = None, None
        base_id = query_number(request, "base")
        if (number := query_number(request, "chat")) is not None:
            chat = service.playground.chats.get(number)
            base_id = chat.base_model_id
        elif (number := query_number(request, "adapter")) is not None:
            adapter = service.models.adapter(number)
            if not talks(adapter.task):
                raise UserError(f"{adapter.name} does not chat. Its own page is reached from the Models page: Try.")
            base_id = adapter.base_model_id
        base_id = base_id or next((each.id for each in bases if each.available), None)
        if chat:
            chosen = [BARE if each is None else str(each) for each in chat.panes]
            shown |= with_chat(chat) | dict(zip(sampling.components, sampling.show(chat.sampling), strict=True))
        else:
            adapters = chatting(base_id)
            newest = adapter or next(iter(adapters), None)
            chosen = [BARE] if base_id else []
            chosen += [str(newest.id)] if newest and query_number(request, "base") is None else []
            shown |= nothing_yet(base_id, chosen)
        choices = pane_choices(base_id)
        warm(base_id)
        return {
            **shown,
            base: gr.Dropdown(choices=[(each.name, each.id) for each in bases], value=base_id),
            panes: gr.CheckboxGroup(
                choices=choices, value=[each for each in chosen if each in {value for _, value in choices}]
            ),
            chat_id: chat.id if chat else None,
        }

    @guarded(notice)
    def choose_base(base_id: int | None) -> Shown:
        choices = pane_choices(base_id)
        chosen = [value for _, value in choices[:2]]
        warm(base_id)
        return {panes: gr.CheckboxGroup(choices=choices, value=chosen), chat_id: None, **nothing_yet(base_id, chosen)}

    @guarded(notice)
    def start_over(base_id: int | None, chosen: list[str]) -> Shown:
        return {chat_id: None, **nothing_yet(base_id, chosen), **earlier(None)}

    @guarded(notice)
    def take(
        text: str, answering: str | None, base_id: int | None, chosen: list[str], current: int | None, *drawn: Any
    ) -> Shown:
        """Before the answer: the chat exists, Stop is where Send was, and the box is to lose what was taken.

        `asked` holds the question until it is answered. Where nothing is taken it stays as it is, so that the `answer`
        that follows has nothing to do, or is the one at work.
        """
        if not (text or "").strip():
            return {}
        if answering:
            raise UserError("The answer before is still being written. Wait for its end, or press Stop; then ask.")
        if not base_id:
            raise UserError("Choose a base model first.")
        settings = sampling.read(drawn)
        number = int(current) if current else service.playground.chats.new(base_id, read_panes(chosen), settings).id
        return {
            asked: text.strip(),
            chat_id: number,
            taken: text,
            send: gr.Button(visible=False),
            stop: gr.Button(visible=True),
        }

    @guarded(notice)
    def answer(text: str, current: int | None, *drawn: Any) -> Iterator[Shown]:
        if not text or not current:
            return
        number = int(current)
        finished = {send: gr.Button(visible=True), stop: gr.Button(visible=False), asked: ""}
        try:
            chat = service.playground.chats.get(number)
            who = who_answers(chat.base_model_id, chat.panes)
            latest: dict[int, Delta] = {}
            status, drawn_at = "Thinking", 0.0
            before = history_html(chat.answers, who)  # a chat's first question takes the place of "Nothing said yet"
            yield {heads: panes_html(who), history: before, live: live_html(text, latest, who, status)}
            answers = service.playground.ask(number, text, sampling.read(drawn))
            try:
                for news in answers:
                    if isinstance(news, Status):
                        status = news.text
                    else:
                        latest[news.pane] = news
                    if time.monotonic() - drawn_at >= REDRAW or isinstance(news, Status):
                        yield {live: live_html(text, latest, who, status)}
                        drawn_at = time.monotonic()
            finally:
                answers.close()  # type: ignore[attr-defined]  # the tab was closed: nobody waits for the rest
            wordless = {} if latest else {unsaid: text, notice: note_html("Stopped before the first word.")}
            yield {**with_chat(service.playground.chats.get(number)), **finished, **earlier(number), **wordless}
        except Exception:
            yield {**finished, live: "", unsaid: text}
            raise

    @guarded(notice)
    def end(current: int | None) -> Shown:
        if current:
            service.playground.stop(int(current))
        return {}

    @guarded(notice)
    def press(event: gr.EventData) -> Shown:
        pressed = action_of(event)
        service.playground.samples.keep(pressed.id, pressed.value.strip())
        said = '<div class="note good"><p>Kept. It is among your <a href="samples">samples</a>.</p></div>'
        return {kept: pressed.id, notice: said}

    @guarded(notice)
    def press_chat(event: gr.EventData, current: int | None) -> Shown:
        pressed = action_of(event)
        service.playground.delete_chat(pressed.id)
        return earlier(int(current) if current else None)

    # What a person does while the same thing is under way: what reads the page's state runs once more afterwards
    # (Gradio's usual "once" would drop the second press), and what says itself which button it was runs beside it.
    again: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
    beside: dict[str, Any] = {**QUIET, "trigger_mode": "multiple"}
    talk = [heads, history, live]
    sampled = sampling.components
    gr.on(None, show, inputs=[], outputs=[*talk, chats, base, panes, chat_id, *sampled, notice], **QUIET).then(
        None, None, None, js=TO_LAST_TURN
    )
    base.input(choose_base, base, [panes, chat_id, *talk, notice], **again).then(None, [base, panes], None, js=NEW_CHAT)
    gr.on([panes.input, new.click], start_over, [base, panes], [chat_id, *talk, chats, notice], **again).then(
        None, [base, panes], None, js=NEW_CHAT
    )
    sent = gr.on(
        [prompt.submit, send.click],
        take,
        [prompt, asked, base, panes, chat_id, *sampled],
        [asked, chat_id, taken, send, stop, notice],
        js=PRESSED,
        **again,
    )
    sent.then(None, taken, taken, js=TAKEN)
    sent.then(None, chat_id, None, js=TO_CHAT).then(
        answer, [asked, chat_id, *sampled], [*talk, send, stop, asked, unsaid, chats, notice], **again
    ).then(None, unsaid, unsaid, js=PUT_BACK)
    stop.click(end, chat_id, [notice], **QUIET)
    history.click(press, None, [kept, notice], **beside).then(None, kept, None, js=NOW_KEPT)
    # One at a time: the list that comes last is the newest.
    chats.click(press_chat, chat_id, [chats, notice], **beside | {"concurrency_limit": 1})


EMPTY = (
    '<div class="empty"><h2>Nothing said yet</h2><p>Your first message starts a chat. It is kept, and its address can '
    "be shared.</p></div>"
)


def chats_html(views: list[ChatView], current: int | None) -> str:
    """Earlier chats, newest first."""
    samples = (
        '<p class="hint"><a href="samples">Kept samples</a></p>'
        '<p class="hint"><a href="predict">Classifiers, taggers and '
        "translators</a> are tried on a page of their own.</p>"
    )
    if not views:
        return f'<section class="card earlier"><h3>Earlier chats</h3><p class="hint">None yet.</p>{samples}</section>'
    rows = "".join(
        f'<li{" aria-current=true" if view.id == current else ""}><a class="link" href="playground?chat={view.id}">'
        f'{escape(view.title)}</a><span class="hint">{escape(when_text(view.created_at))}</span>'
        + action_html("delete", view.id, "Delete", question=f"Delete the chat {view.title}? Kept samples stay.")
        + "</li>"
        for view in views
    )
    return f'<section class="card earlier"><h3>Earlier chats</h3><ul>{rows}</ul>{samples}</section>'
