"""What a task measured beside numbers at an evaluation, as a page shows it: where labels are confused, how well each is
found, numbers against each other, and rows with what was expected and what came.

`details` are JSON that the task wrote (jobs.tasks.measures); a part that is not there is not shown.
"""

from __future__ import annotations

from typing import Any

from app.components import escape
from app.predictions import marked, percent_text
from jobs.tasks.predictions import Span

_SCATTER = 240  # pixels


def evaluation_html(step: int, details: dict[str, Any]) -> str:
    """Everything that one evaluation has to show, as cards."""
    parts = [
        _matrix(details),
        _per_label(details),
        _confused(details) if "matrix" not in details else "",
        _scatter(details),
        _samples(details),
    ]
    shown = [part for part in parts if part]
    if not shown:
        return ""
    when = f"step {step:,}" if step else "before training"
    head = f'<div class="chart-head"><h2>On rows it has not seen</h2><span class="hint">{when}</span></div>'
    return f'<section class="card evaluation">{head}{"".join(shown)}</section>'


def _matrix(details: dict[str, Any]) -> str:
    """A row for each label that was given, a column for each that was chosen; the darker the more of the row."""
    labels, matrix = details.get("labels") or [], details.get("matrix") or []
    if not matrix:
        return ""
    head = "".join(f'<th scope="col"><span>{escape(label)}</span></th>' for label in labels)
    rows = "".join(
        f'<tr><th scope="row"><span>{escape(label)}</span></th>{_cells(place, counts, labels)}</tr>'
        for place, (label, counts) in enumerate(zip(labels, matrix, strict=True))
    )
    return (
        '<div><h3>Which labels are confused</h3><p class="hint">A row for each label that is right, a column for each '
        'that was said: the diagonal is right.</p><div class="table-wrap"><table class="confusion">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def _cells(place: int, counts: list[int], labels: list[str]) -> str:
    whole = sum(counts) or 1
    return "".join(
        f'<td class="{"right" if place == column else "wrong"}" style="--share:{count / whole:.3f}" '
        f'title="{escape(labels[place])} called {escape(labels[column])}: {count:,} of {whole:,}">'
        f"{f'{count:,}' if count else '·'}</td>"
        for column, count in enumerate(counts)
    )


def _per_label(details: dict[str, Any]) -> str:
    found = details.get("per_label") or []
    if not found:
        return ""
    rows = "".join(
        f"<tr><td>{escape(each['label'])}</td>"
        f'<td><span class="bar"><i style="width:{100 * each["f1"]:.0f}%"></i></span></td>'
        + "".join(f'<td class="number">{each[name]:.2f}</td>' for name in ("f1", "precision", "recall"))
        + f'<td class="number">{each["rows"]:,}</td></tr>'
        for each in found
    )
    return (
        '<div><h3>Each label by itself</h3><p class="hint">Precision: how many of those it names are right. Recall: '
        "how many of the right ones it finds. F1 is between the two.</p>"
        '<div class="table-wrap"><table class="table per-label"><thead><tr><th>Label</th><th></th>'
        '<th class="number">F1</th><th class="number">Precision</th><th class="number">Recall</th>'
        f'<th class="number">Rows</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
    )


def _confused(details: dict[str, Any]) -> str:
    """In place of a matrix that would be too large to read."""
    found = details.get("confused") or []
    if not found:
        return ""
    rows = "".join(
        f"<tr><td>{escape(each['given'])}</td><td>{escape(each['chosen'])}</td>"
        f'<td class="number">{each["rows"]:,}</td></tr>'
        for each in found
    )
    return (
        '<div><h3>What is confused most</h3><div class="table-wrap"><table class="table"><thead><tr><th>Right</th>'
        f'<th>Said</th><th class="number">Rows</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
    )


def _scatter(details: dict[str, Any]) -> str:
    """Numbers: what was right to the right, what was said upwards; on the diagonal both are the same."""
    points = details.get("points") or []
    if not points:
        return ""
    low = min(min(pair) for pair in points)
    high = max(max(pair) for pair in points)
    scale = _SCATTER / ((high - low) or 1)
    dots = "".join(
        f'<circle cx="{(right - low) * scale:.1f}" cy="{_SCATTER - (said - low) * scale:.1f}" r="3.5"/>'
        for right, said in points
    )
    whole = _SCATTER + 16
    return (
        '<div><h3>Said against right</h3><p class="hint">A dot a row: what is right to the right, what was said '
        "upwards. On the line both are the same.</p>"
        f'<svg class="scatter" viewBox="-8 -8 {whole} {whole}" role="img" '
        f'aria-label="{len(points)} predictions against the right numbers, from {low:.4g} to {high:.4g}">'
        f'<line x1="0" y1="{_SCATTER}" x2="{_SCATTER}" y2="0"/>{dots}</svg>'
        f'<p class="hint number">from {low:.4g} to {high:.4g}</p></div>'
    )


def _samples(details: dict[str, Any]) -> str:
    found = details.get("samples") or []
    if not found:
        return ""
    tags = sorted(
        {
            span["tag"]
            for each in found
            for kind in ("expected", "predicted")
            for span in each.get(f"{kind}_spans") or []
        }
    )
    judged = "points" not in details  # a number is near or far, not right or wrong
    rows = "".join(_sample(each, tags, judged) for each in found)
    return f'<div><h3>Some of these rows</h3><div class="sample-rows">{rows}</div></div>'


def _sample(each: dict[str, Any], tags: list[str], judged: bool) -> str:
    right = not judged or each["expected"] == each["predicted"]
    sure = f' <span class="hint">{percent_text(each["confidence"])} sure</span>' if each.get("confidence") else ""
    sides = "".join(
        f"<div><dt>{name}</dt><dd>{_side(each, kind, tags)}{sure if kind == 'predicted' else ''}</dd></div>"
        for kind, name in (("expected", "Right"), ("predicted", "Said"))
    )
    text = "" if each.get("predicted_spans") is not None else f'<p class="sample-text">{escape(each["text"])}</p>'
    return (
        f'<article class="sample-row{"" if right else " wrong"}"><p class="hint">Row {each["row"]:,}</p>{text}'
        f"<dl>{sides}</dl></article>"
    )


def _side(each: dict[str, Any], kind: str, tags: list[str]) -> str:
    spans = each.get(f"{kind}_spans")
    if spans is None:
        return escape(each[kind])
    return f'<span class="tagged">{marked(each["text"], [Span(**span) for span in spans], tags)}</span>'
