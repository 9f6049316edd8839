"""The edge where an error becomes a sentence: every callback is guarded, no traceback reaches a page.

A guarded callback returns a dictionary of component to value, so that a failure changes nothing but the notice.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from app.components import problems_html
from jobs.errors import UserError

Shown = dict[Any, Any]  # component -> what it displays now

log = logging.getLogger("graft.app")

# An event's options: nothing moves while it is waited for, and as many run at once as come.
QUIET: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
ORDER = "x-graft-order"  # the header in which a page numbers its events, from 1
SOMETHING_WRONG = "Something went wrong on our side. The details are in logs/server.log, in Graft's folder."


def guarded(notice: gr.HTML) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Show a callback's UserError in `notice`, in its own words; anything else in one sentence, and in the log.

    What the callback returns (or yields) empties the notice of what earlier callbacks of the page set, unless it sets
    the notice itself. What a later one has set stays: see `_Notices`. A generator that ends before its first yield
    changes nothing, the notice included.
    """

    def decorate(callback: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(callback):

            @functools.wraps(callback)
            def stream(*values: Any, **named: Any) -> Iterator[Shown]:
                turn = _notices.begin(notice)
                began = False
                try:
                    for shown in callback(*values, **named):
                        began = True
                        yield {**shown, notice: turn.says(shown.get(notice))}
                    if not began:
                        yield {notice: gr.skip()}  # after no yield at all, Gradio would empty every output
                except Exception as error:
                    yield {notice: turn.fails(in_words(error))}

            return stream

        @functools.wraps(callback)
        def call(*values: Any, **named: Any) -> Shown:
            turn = _notices.begin(notice)
            try:
                shown = callback(*values, **named) or {}
                return {**shown, notice: turn.says(shown.get(notice))}
            except Exception as error:
                return {notice: turn.fails(in_words(error))}

        return call

    return decorate


def in_words(error: Exception) -> str:
    """The notice for an error; an unexpected one is logged with its traceback."""
    if isinstance(error, UserError):
        return problems_html(error)
    log.error("a callback failed", exc_info=error)
    return problems_html(SOMETHING_WRONG)


class _Notices:
    """What stands in each page's notices, and in what order it was asked for.

    Callbacks of a page run side by side and end in any order. The one that a person began later is the newer news: an
    earlier one that ends after it neither empties nor replaces what it said. The order is the page's own, which
    static/queue.js numbers; a caller without it counts as the newest. A page is known by its session hash, which
    Gradio makes anew at every load.
    """

    def __init__(self, remembered: int = 1_000) -> None:
        self._pages: OrderedDict[str, _Page] = OrderedDict()
        self._remembered = remembered
        self._lock = threading.Lock()

    def begin(self, notice: gr.HTML) -> _Turn:
        """Call it where a callback begins."""
        request = LocalContext.request.get(None)
        name, number = (str(request.session_hash), _order(request)) if request else ("", 0)
        with self._lock:
            page = self._pages.pop(name, None) or _Page(fresh=number == 1)
            self._pages[name] = page
            while len(self._pages) > self._remembered:
                self._pages.popitem(last=False)
            order = number or page.newest + 1
            page.newest = max(page.newest, order)
        return _Turn(page, notice._id, order, self._lock)


class _Page:
    """`fresh`: just loaded, so that nothing stands in it; what stands in a forgotten page is unknown."""

    def __init__(self, fresh: bool) -> None:
        self.fresh = fresh
        self.newest = 0
        self.standing: dict[int, list[tuple[int, str]]] = {}  # a notice's id: (order, HTML), by order

    def at(self, notice: int) -> list[tuple[int, str]]:
        return self.standing.get(notice, [] if self.fresh else [(0, "")])


class _Turn:
    """One callback's say in its notice. Every method gives what the notice is to show: HTML, or gr.skip()."""

    def __init__(self, page: _Page, notice: int, order: int, lock: threading.Lock) -> None:
        self._page, self._notice, self._order, self._lock = page, notice, order, lock

    def says(self, told: Any) -> Any:
        """`told`: what the callback sets; None where it sets nothing, which empties what was there before."""
        if told is not None and not isinstance(told, str):
            return told  # a change of something else than the words
        with self._lock:
            before = self._page.at(self._notice)
            later = [each for each in before if each[0] > self._order]
            if told is None:
                return self._stand(later) if len(later) < len(before) else gr.skip()
            return gr.skip() if later else self._stand([(self._order, told)])

    def fails(self, words: str) -> str:
        """An error is never lost: where a later callback has said something, it stands beside it."""
        with self._lock:
            later = [each for each in self._page.at(self._notice) if each[0] > self._order]
            return self._stand([(self._order, words), *later])

    def _stand(self, standing: list[tuple[int, str]]) -> str:
        standing = [each for each in standing if each[1]]
        self._page.standing[self._notice] = standing
        return "".join(html for _, html in standing)


class Latest:
    """Which of a page's long callbacks is the newest: an older one notices that a setting has changed, and ends.

    A page is known by its session hash, which Gradio makes anew at every load.
    """

    def __init__(self, remembered: int = 1_000) -> None:
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._remembered = remembered
        self._lock = threading.Lock()

    def begin(self, request: gr.Request) -> Callable[[], bool]:
        """Call the result to ask whether this is still the page's newest."""
        page = str(request.session_hash)
        with self._lock:
            newest = self._numbers.pop(page, 0)
            number = _order(request) or newest + 1
            self._numbers[page] = max(number, newest)
            while len(self._numbers) > self._remembered:
                self._numbers.popitem(last=False)
        return lambda: self._numbers.get(page, number) == number


_notices = _Notices()


def _order(request: gr.Request) -> int:
    """The number that the page gave this event; 0 where it gave none."""
    number = str(request.headers.get(ORDER, ""))
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0


def query_number(request: gr.Request, name: str) -> int | None:
    """A number in the page's address (/train?dataset=3); None where it is missing or no number."""
    text = str(request.query_params.get(name, ""))
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
