"""The one way our pages put finished HTML on a page: none of Gradio's prose styles, no script but ours."""

from __future__ import annotations

import gradio as gr


def markup(html: str = "", *, classes: str = "", js_on_load: str | None = None) -> gr.HTML:
    """A block of HTML; an empty one takes no room. `classes`: further CSS classes, separated by spaces."""
    return gr.HTML(html, js_on_load=js_on_load, apply_default_css=False, elem_classes=["plain", *classes.split()])
