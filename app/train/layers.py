"""Which layers a method trains: the choice's real module names on the chosen model, and how to choose."""

from __future__ import annotations

from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from pydantic import ValidationError

from app.components import count_text, escape
from jobs.methods import method
from jobs.methods.targets import GUIDE, TargetParams, TargetRow
from jobs.shape import ModelShape

FIELDS = tuple(TargetParams.model_fields)


def layers_html(name: str, settings: dict[str, Any], shape: ModelShape) -> str:
    """The table of what is trained, and the guide; empty for a method that asks for no layers."""
    chosen = method(name)
    try:
        rows = chosen.target_table(type(chosen).Params(**settings), shape)
    except ValidationError:
        rows = []  # the summary says what is wrong
    asks = issubclass(type(chosen).Params, TargetParams)
    if not rows and not asks:
        return ""
    guide = _guide() if asks else ""
    return f'<div class="layers">{_table(rows, shape)}{guide}</div>'


def _table(rows: list[TargetRow], shape: ModelShape) -> str:
    if not rows:
        return '<p class="hint">No layer is chosen.</p>'
    layers = sum(row.count for row in rows)
    whole = sum(row.count * row.parameters for row in rows)
    body = "".join(
        f'<tr><td><code>{_name(row.pattern)}</code></td><td class="number">{row.count:,}</td>'
        f'<td class="number">{row.parameters:,}</td><td class="number">{row.count * row.parameters:,}</td></tr>'
        for row in rows
    )
    return (
        f'<p class="hint"><b class="number">{layers:,}</b> of {len(shape.linears):,} linear layers, '
        f'<b class="number">{count_text(whole)}</b> parameters</p>'
        '<div class="table-wrap"><table class="table layer-table"><thead><tr><th>Layers of the model</th>'
        '<th class="number">How many</th><th class="number">In each</th><th class="number">Together</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _name(pattern: str) -> str:
    """A name that may break behind its dots, where the screen is narrow."""
    return escape(pattern).replace(".", ".<wbr>")


@cache
def _guide() -> str:
    text = MarkdownIt("commonmark", {"html": False}).render(GUIDE)
    return f'<details class="guide"><summary>How to choose layers</summary><div class="answer">{text}</div></details>'
