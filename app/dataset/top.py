"""The top and the bottom of the page Dataset: what the dataset is, and its first rows as they were read."""

from __future__ import annotations

from typing import Any

from app.actions import action_html
from app.components import bytes_text, count_text, escape, figures_html, note_html, when_text
from jobs.service.datasets import DatasetView


def top_html(view: DatasetView) -> str:
    """Name, figures, what was detected, and what can be done."""
    figures = figures_html(
        [
            ("Rows", count_text(view.rows), ""),
            ("Size", bytes_text(view.size_bytes), view.format.upper()),
            (
                "Columns",
                str(len(view.columns)),
                ", ".join(view.columns[:4]) + (" ..." if len(view.columns) > 4 else ""),
            ),
            ("Runs", str(view.runs), "on this dataset"),
        ]
    )
    train = (
        f'<a class="button primary" href="train?dataset={view.id}">Train on this</a>'
        if view.mapping
        else '<span class="hint">Choose the columns first; then you can train on it.</span>'
    )
    buttons = (
        train
        + action_html("columns", view.id, "Change columns")
        + _first_row_html(view)
        + action_html("rename", view.id, "Rename", question="A new name for this dataset", value=view.name)
        + _delete_html(view)
    )
    return (
        f'<div class="stack top"><header class="page-header"><h1>{escape(view.name)}</h1>'
        f"<p>{escape(view.filename)} · added {escape(when_text(view.created_at))}</p></header>"
        f"{figures}{note_html(view.detected, 'good' if view.sure else 'warn')}"
        f'<div class="buttons">{buttons}</div></div>'
    )


def _delete_html(view: DatasetView) -> str:
    """While runs use it nothing is asked: the press says which they are."""
    if view.runs:
        return action_html("used", view.id, "Delete")
    question = f"Delete the dataset {view.name} and its file? This cannot be undone."
    return action_html("delete", view.id, "Delete", question=question)


def _first_row_html(view: DatasetView) -> str:
    """What the person says where a table's first row was taken for the wrong thing."""
    if view.first_row == "header":
        return action_html("data", view.id, "The first row is data")
    return action_html("header", view.id, "The first row is column names") if view.first_row else ""


def head_html(view: DatasetView, rows: list[dict[str, Any]]) -> str:
    """The file's first rows, as they were read."""
    titles = "".join(f"<th>{escape(name)}</th>" for name in view.columns)
    body = "".join(
        "<tr>"
        + f'<td class="number muted">{number}</td>'
        + "".join(f"<td>{escape(_cell(values.get(name)))}</td>" for name in view.columns)
        + "</tr>"
        for number, values in enumerate(rows, 1)
    )
    return (
        f'<section class="card"><h2>The first rows, as they were read</h2><div class="table-wrap">'
        f'<table class="table raw"><thead><tr><th class="number">Row</th>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
        "</div></section>"
    )


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
