"""Fit it for me: the button that turns the settings into ones that fit, what it says it changed, and its undoing.

What was fitted last stands in a hidden box of the page, as JSON: the settings after, those before where anything
was changed, the changes, and a note where the last press made none. The words stay in sight for as long as the
settings are those.
"""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
from pydantic import ValidationError

from app.callbacks import Shown
from app.components import escape, note_html
from app.drafts import Checks, Settings
from app.train.widgets import Widgets
from jobs.fitting import Fitted
from jobs.service import Service
from jobs.service.planning import Plan
from jobs.sizes import bytes_texts
from jobs.spec import TrainingParams

_OFFER = "Fit it for me changes first what costs no quality. A smaller base model needs less, too."


class Fitting:
    """Callbacks of the two buttons; each takes `Widgets.fitting` and the values of `Widgets.inputs`."""

    def __init__(self, service: Service, widgets: Widgets, checks: Checks) -> None:
        self._service = service
        self._widgets = widgets
        self._checks = checks

    def fit(self, fitting: str | None, *values: Any) -> Shown:
        """The settings that fit, and what was changed. Pressed again on what it made, it adds to what it said, and
        Undo still goes back to before the first press."""
        w = self._widgets
        now = w.settings(values)
        draft = now.draft
        after, found = self._service.planning.fit(draft, self._checks.get(draft))
        kept = json.loads(fitting or "null")
        earlier = kept if kept and self._as_fitted(kept, now) and "before" in kept else {}
        if earlier and not found.changes and found.fits:
            return {}
        said = {
            "method": now.method,
            "after": [after.training, after.method_params],
            "changes": [*earlier.get("changes", ()), *found.changes],
            "note": "" if found.changes else _no_change(found),
            "stuck": not found.changes and not found.fits,
        }
        if said["changes"]:
            said["before"] = earlier.get("before", [now.training, now.method_params])
        shown = self._show(now.method, after.training, after.method_params) if found.changes else {}
        return {**shown, w.fitting: json.dumps(said)}

    def undo(self, fitting: str | None, *values: Any) -> Shown:
        """The settings as they were before."""
        kept = json.loads(fitting or "null")
        now = self._widgets.settings(values)
        if not kept or "before" not in kept or kept["method"] != now.method:
            return {}
        training, params = kept["before"]
        return {**self._show(now.method, training, params), self._widgets.fitting: ""}

    def show(self, fitting: str | None, now: Settings, done: Plan | None) -> Shown:
        """The buttons and the words, beside a plan of these settings."""
        w = self._widgets
        kept = json.loads(fitting or "null")
        as_fitted = bool(kept) and self._as_fitted(kept, now)
        stuck = as_fitted and kept.get("stuck", False)  # pressed again it would change nothing again
        can = done is not None and done.can_be_fitted and not stuck
        said = _said_html(kept) if as_fitted else f'<p class="hint">{_OFFER}</p>' if can else ""
        return {
            w.fit: gr.Button(visible=can, variant="secondary" if as_fitted else "primary"),
            w.fitted: said,
            w.undo: gr.Button(visible=as_fitted and "before" in kept),
        }

    def _show(self, method: str, training: dict[str, Any], params: dict[str, Any]) -> Shown:
        w = self._widgets
        return {**w.show_training(training), **w.method_forms.show(method, params, fresh=True)}

    def _as_fitted(self, kept: dict[str, Any], now: Settings) -> bool:
        """Whether the page still holds what was fitted: a form gives whole numbers and text in its own way."""
        if kept["method"] != now.method:
            return False
        after = kept["after"]
        kind = type(self._widgets.methods[now.method]).Params
        try:
            return (TrainingParams(**after[0]), kind(**after[1])) == (
                TrainingParams(**now.training),
                kind(**now.method_params),
            )
        except ValidationError:
            return False


def _no_change(found: Fitted) -> str:
    """Why nothing was changed, and what is left to do."""
    if found.fits:
        return "It fits as it is."
    needs, allowed = bytes_texts(found.needs, found.allowed)
    said = (
        f"Nothing that Fit it for me may change is enough: with all of it the run still needs {needs}, and {allowed} "
        f"are {'allowed' if found.limited else 'free'}. "
    )
    other = "a smaller base model, or another method."
    if not found.instead:
        return f"{said}Choose {other}"
    return f"{said}What would do, once you have set it and press again: {'; '.join(found.instead)}. Or choose {other}"


def _said_html(kept: dict[str, Any]) -> str:
    """What was changed, one a line, and why no more was."""
    lines = "".join(f"<li>{escape(change)}</li>" for change in kept["changes"])
    head = "Changed:" if kept["note"] else "Changed so that it fits:"
    changed = f'<div class="note good fitted"><p>{head}</p><ul>{lines}</ul></div>' if lines else ""
    return changed + note_html(kept["note"], "warn")
