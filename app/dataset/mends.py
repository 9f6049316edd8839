"""How findings and mends look: what was found with what helps, what a mend would do to the first rows, what is applied.

Buttons carry a mend as JSON in their action; the service checks it as it checks everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from app.actions import action_html
from app.components import count_text, escape
from jobs.data.turns import CONTENT_KEYS, ROLE_KEYS
from jobs.errors import UserError
from jobs.service.datasets import Finding
from jobs.service.mending import Mend, MendPreview, MendRef, Sample

TRY, APPLY, UNDO, DISMISS = "try", "apply", "undo", "dismiss"
_AROUND = 60  # characters shown before and after what differs
_LONG = 600


def ref_of(action: str) -> tuple[str, MendRef]:
    """What a button wants with which mend. Raises UserError for what no button of ours sends."""
    verb, _, given = action.partition(" ")
    try:
        return verb, MendRef.model_validate_json(given)
    except ValidationError as error:
        raise UserError("That button is unknown. Reload the page.") from error


def _action(verb: str, ref: MendRef) -> str:
    return f"{verb} {ref.model_dump_json()}"


def findings_html(findings: Iterable[Finding], labels: dict[str, str]) -> str:
    """Every finding with its first rows and the mend that helps. `labels`: what the mends are called."""
    items = "".join(_finding(finding, labels) for finding in findings)
    return f'<div class="found"><h3>What was found</h3><ul class="findings">{items}</ul></div>' if items else ""


def _finding(finding: Finding, labels: dict[str, str]) -> str:
    rows = "".join(action_html("look", row, f"{row:,}") for row in finding.rows)
    more = f"<span>and {finding.count - len(finding.rows):,} more</span>" if finding.count > len(finding.rows) else ""
    listed = f'<div class="rows"><span>Rows</span>{rows}{more}</div>' if rows else ""
    mend = ""
    if finding.mend:
        mend = action_html(_action(TRY, finding.mend), 0, f"{labels.get(finding.mend.name, finding.mend.name)} …")
    return f'<li class="{finding.severity}"><div><p>{escape(finding.words)}</p>{listed}</div>{mend}</li>'


def mends_html(applied: list[tuple[MendRef, str]], offered: list[Mend]) -> str:
    """The mends that are applied, each with its way back, and those that can be tried."""
    done = "".join(
        f"<li><span>{escape(label)}</span>{action_html(_action(UNDO, ref), 0, 'Undo')}</li>" for ref, label in applied
    )
    others = "".join(
        f"<li><div><b>{escape(mend.label)}</b><p>{escape(mend.help)}</p></div>"
        f"{action_html(_action(TRY, MendRef(name=mend.name)), 0, 'See what it would do')}</li>"
        for mend in offered
    )
    kept = f'<ul class="applied">{done}</ul>' if done else ""
    choice = f'<details class="all-mends"><summary>All mends</summary><ul class="offered">{others}</ul></details>'
    hint = (
        "Done each time the rows are read, in this order; the uploaded file stays as it is."
        if done
        else "Nothing is mended. The uploaded file always stays as it is."
    )
    return f'<div class="mends"><h3>Mends</h3><p class="hint">{hint}</p>{kept}{choice if others else ""}</div>'


def trial_html(mend: Mend, label: str, ref: MendRef, seen: MendPreview) -> str:
    """What a mend would do: how many rows, the first of them before and after, and the buttons that decide."""
    touched = [
        f"{count_text(seen.changed)} {'row is' if seen.changed == 1 else 'rows are'} changed" if seen.changed else "",
        f"{count_text(seen.dropped)} {'row is' if seen.dropped == 1 else 'rows are'} left out" if seen.dropped else "",
    ]
    said = ", ".join(part for part in touched if part)
    if not said:
        body = '<p class="hint">It would change nothing here.</p>'
        buttons = action_html(DISMISS, 0, "Close")
    else:
        rows = "".join(_sample(sample) for sample in seen.samples)
        more = seen.changed + seen.dropped - len(seen.samples)
        rest = f'<p class="hint">and {more:,} rows more</p>' if more > 0 else ""
        body = (
            '<div class="table-wrap"><table class="table raw trial-rows"><thead><tr><th class="number">Row</th>'
            f"<th>Before</th><th>After</th></tr></thead><tbody>{rows}</tbody></table></div>{rest}"
        )
        apply = action_html(_action(APPLY, ref), 0, "Apply").replace("button quiet", "button primary", 1)
        buttons = apply + action_html(DISMISS, 0, "Leave as it is")
    return (
        f'<section class="trial" aria-label="{escape(label)}"><h3>{escape(label)}</h3>'
        f'<p class="hint">{escape(mend.help)}</p>{f"<p><strong>{said}.</strong></p>" if said else ""}{body}'
        f'<div class="buttons">{buttons}</div></section>'
    )


def _sample(sample: Sample) -> str:
    if sample.before is None:
        before = '<span class="hint">cannot be read</span>'
        after = '<span class="hint">left out</span>'
    elif sample.after is None:
        before = escape(_short(_text(sample.before)))
        after = '<span class="hint">left out</span>'
    else:
        changed = [name for name in sample.before if sample.before[name] != sample.after.get(name)]
        pairs = [(_text(sample.before[name]), _text(sample.after.get(name))) for name in changed]
        before, after = ("<br>".join(side) for side in zip(*(_differing(*pair) for pair in pairs), strict=True))
    return f'<tr><td class="number">{sample.row:,}</td><td>{before}</td><td>{after}</td></tr>'


def _differing(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML, with what differs marked and what is far from it left out."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    return _marked(before, start, end, "del"), _marked(after, start, end, "ins")


def _marked(text: str, start: int, end: int, tag: str) -> str:
    until = len(text) - end
    head, middle, tail = text[max(0, start - _AROUND) : start], _short(text[start:until]), text[until : until + _AROUND]
    shown = escape(middle).replace(" ", "·").replace("\n", "↵\n") if middle.isspace() else escape(middle)
    return (
        ("…" if start > _AROUND else "")
        + escape(head)
        + (f"<{tag}>{shown}</{tag}>" if middle else "")
        + escape(tail)
        + ("…" if until + _AROUND < len(text) else "")
    )


def _text(value: Any) -> str:
    """A cell as a person reads it: turns line by line."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and not any(key in value for key in ROLE_KEYS):
        return "\n".join(f"{name}: {_text(cell)}" for name, cell in value.items())
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "\n".join(_turn(item) for item in value)
    return json.dumps(value, ensure_ascii=False)


def _turn(item: dict[str, Any]) -> str:
    role = next((str(item[key]) for key in ROLE_KEYS if item.get(key) is not None), "?")
    content = next((item[key] for key in CONTENT_KEYS if item.get(key) is not None), "")
    return f"{role}: {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}"


def _short(text: str) -> str:
    return text if len(text) <= _LONG else text[:_LONG] + "…"
