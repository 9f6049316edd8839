"""The pages, put together: every module of app/pages becomes a page with the same navigation.

A page module has SLUG (one path segment, "" for the first page), TITLE, NAV (its label in the navigation, or None),
ORDER, ICON (the path data of a 24 by 24 line icon) and build(service).
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable
from typing import Protocol, cast

import gradio as gr

import app.pages
from app.components import escape
from app.theme import static_url
from jobs.service import Service


class Page(Protocol):
    SLUG: str
    TITLE: str
    NAV: str | None
    ORDER: int
    ICON: str

    def build(self, service: Service) -> None: ...


def pages() -> list[Page]:
    """Every page, in the navigation's order."""
    names = [info.name for info in pkgutil.iter_modules(app.pages.__path__)]
    modules = [cast(Page, importlib.import_module(f"app.pages.{name}")) for name in names]
    return sorted(modules, key=lambda page: (page.ORDER, page.SLUG))


def fragments() -> dict[str, Callable[[Service], str]]:
    """What pages declare as FRAGMENTS: a name, and how its HTML is made (app.components.live_html shows it)."""
    return {name: render for page in pages() for name, render in getattr(page, "FRAGMENTS", {}).items()}


def build(service: Service) -> gr.Blocks:
    """The whole interface. Mount it at "/" with app.theme's theme and head."""
    found = pages()
    first = next(page for page in found if page.SLUG == "")
    with gr.Blocks(title="Graft", analytics_enabled=False, fill_width=True) as demo:
        _frame(found, first, service)
    for page in found:
        if page is not first:
            with demo.route(page.TITLE, page.SLUG, show_in_navbar=False):
                _frame(found, page, service)
    for event in demo.fns.values():
        event.api_visibility = "private"  # else every page carries a description of its events: more than itself
    return demo


def _frame(found: list[Page], page: Page, service: Service) -> None:
    gr.HTML(
        navigation_html(found, page),
        elem_classes="plain",
        apply_default_css=False,
        js_on_load=f"Graft.page({json.dumps(page.TITLE if page.SLUG else '')})",
    )
    with gr.Column(elem_classes=["page", f"page-{page.SLUG or 'home'}"]):
        page.build(service)


def navigation_html(found: list[Page], current: Page) -> str:
    """The column at the left; on a narrow screen a bar at the bottom."""
    # A page without a label of its own (one run) belongs to the nearest labelled page before it (Runs).
    active = current
    for page in found:
        if page.NAV and page.ORDER <= current.ORDER:
            active = page
    if current.NAV:
        active = current
    links = "".join(
        f'<a href="/{page.SLUG}"{" aria-current=page" if page is active else ""}>{icon_html(page.ICON)}'
        f"<span>{escape(page.NAV)}</span></a>"
        for page in found
        if page.NAV
    )
    return (
        '<a class="skip" href="#content">Skip to the content</a>'
        '<div class="nav-top"><a class="brand" href="/">'
        f'<img src="{static_url("icon.svg")}" alt="" width="28" height="28"><span>Graft</span></a>'
        '<button type="button" class="theme-toggle" data-theme-toggle></button></div>'
        f'<nav class="nav" aria-label="Pages">{links}</nav><div id="content" tabindex="-1"></div>'
    )


def icon_html(path: str) -> str:
    """A line icon in the colour of its text."""
    return (
        '<svg viewBox="0 0 24 24" width="20" height="20" fill="none" stroke="currentColor" stroke-width="1.8" '
        f'stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d="{escape(path)}"/></svg>'
    )
