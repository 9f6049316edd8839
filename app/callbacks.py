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

from app.components import problems_html
from jobs.errors import UserError

Shown = dict[Any, Any]  # component -> what it displays now

log = logging.getLogger("graft.app")

SOMETHING_WRONG = "Something went wrong on our side. The details are in logs/server.log, in Graft's folder."


def guarded(notice: gr.HTML) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Show a callback's UserError in `notice`, in its own words; anything else in one sentence, and in the log.

    What the callback returns (or yields) empties the notice, unless it sets the notice itself. A generator that ends
    before its first yield changes nothing, the notice included.
    """

    def decorate(callback: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(callback):

            @functools.wraps(callback)
            def stream(*values: Any, **named: Any) -> Iterator[Shown]:
                began = False
                try:
                    for shown in callback(*values, **named):
                        began = True
                        yield {notice: "", **shown}
                    if not began:
                        yield {notice: gr.skip()}  # after no yield at all, Gradio would empty every output
                except Exception as error:
                    yield {notice: in_words(error)}

            return stream

        @functools.wraps(callback)
        def call(*values: Any, **named: Any) -> Shown:
            try:
                return {notice: "", **(callback(*values, **named) or {})}
            except Exception as error:
                return {notice: in_words(error)}

        return call

    return decorate


def in_words(error: Exception) -> str:
    """The notice for an error; an unexpected one is logged with its traceback."""
    if isinstance(error, UserError):
        return problems_html(error)
    log.error("a callback failed", exc_info=error)
    return problems_html(SOMETHING_WRONG)


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
            number = self._numbers.pop(page, 0) + 1
            self._numbers[page] = number
            while len(self._numbers) > self._remembered:
                self._numbers.popitem(last=False)
        return lambda: self._numbers.get(page, number) == number


def query_number(request: gr.Request, name: str) -> int | None:
    """A number in the page's address (/train?dataset=3); None where it is missing or no number."""
    text = str(request.query_params.get(name, ""))
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
