"""Every run: what it is doing or how it ended, newest first. The table keeps itself fresh over a socket."""

from __future__ import annotations

from app.components import STATES, badge_html, duration_text, escape, live_html, page_header, when_text
from app.run_words import label, steps_text, talks, try_it, words
from jobs.methods import method
from jobs.service import Service
from jobs.service.runs import RunView

SLUG = "runs"
TITLE = "Runs"
NAV = "Runs"
ORDER = 30
ICON = "M4 19V5M4 19h16M8 15l3-4 3 2 5-7"


def build(service: Service) -> None:
    page_header("Runs", "Everything that was trained, is training or waits for its turn.")
    live_html("runs")


def table_html(service: Service) -> str:
    """The table, or what to do where there is no run yet."""
    runs = service.runs.list()
    if not runs:
        return (
            '<div class="card empty"><h2>No run yet</h2><p>Train the example with one click, or start with your own '
            'data.</p><div class="buttons"><a class="button" href="/">Try the example</a>'
            '<a class="button primary" href="/train">Start a run</a></div></div>'
        )
    rows = "".join(_row_html(service, run) for run in runs)
    return (
        '<div class="card"><div class="table-wrap"><table class="table runs"><thead><tr><th>Run</th><th>State</th>'
        '<th class="number">Steps</th><th class="number">Best loss</th><th class="number">Time</th><th>Started</th>'
        f"<th></th></tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def _row_html(service: Service, run: RunView) -> str:
    spec = run.spec
    said = (run.reason or "") if run.state.ended else words(service, run)
    if said == STATES[run.state.value][0]:
        said = ""  # the badge says it
    where = try_it(spec.task, run.adapter_id)[1] if run.adapter_id else ""
    chat = f'<a href="{where}">{"Chat" if talks(spec.task) else "Try"}</a>' if where else ""
    best = f"{run.best_eval_loss:.3f}" if run.best_eval_loss is not None else "–"
    taken = run.trained_seconds if run.started_at and run.state.ended else None
    return (
        f'<tr data-key="{run.id}"><td><a class="name link" href="/run?id={run.id}">{escape(run.name)}</a>'
        f'<p class="hint">{escape(label(method, spec.method))} · {escape(spec.base_model.name)} · '
        f"{escape(spec.dataset.name)}</p></td>"
        f'<td>{badge_html(run.state)}<p class="hint said">{escape(said)}</p></td>'
        f'<td class="number" data-label="Steps">{escape(steps_text(run))}</td>'
        f'<td class="number" data-label="Best loss">{best}</td>'
        f'<td class="number" data-label="Time">{escape(duration_text(taken))}</td>'
        f'<td data-label="Started">{escape(when_text(run.started_at or run.created_at))}</td><td>{chat}</td></tr>'
    )


FRAGMENTS = {"runs": table_html}
