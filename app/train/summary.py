"""The column beside Start: what will be trained, on how much, whether it fits, and what stands in the way."""

from __future__ import annotations

from urllib.parse import quote

from app.components import bytes_text, count_text, escape, note_html, problems_html, range_text
from app.preflight import notes_html
from app.train.methods import percent_text
from jobs.memory.estimate import LABELS, Estimate
from jobs.service import Service
from jobs.service.datasets import Preflight
from jobs.service.models import BaseModelView
from jobs.service.planning import Plan
from jobs.sizes import bytes_texts

REASONS = 5  # on the Train page; the dataset's own page lists every row


def summary_html(plan: Plan, model: BaseModelView, dataset: str, method: str) -> str:
    """Who learns what, figures, and the memory bar; all move with every setting."""
    percent = plan.trainable_percent
    sums = [
        ("Trains", plan.trainable_parameters, "parameter", f", {percent_text(percent)}" if percent is not None else ""),
        ("In", model.shape.layers, "layer", ""),
        ("Sees", plan.train_rows, "row", ""),
        ("Keeps aside", plan.validation_rows, "row", " to validate with"),
        ("Takes", plan.steps, "step", ""),
    ]
    rows = "".join(
        f"<div><dt>{label}</dt><dd><strong>{count_text(value)}</strong> {escape(each if value == 1 else f'{each}s')}"
        f"{escape(more)}</dd></div>"
        for label, value, each, more in sums
    )
    if plan.seconds is not None:
        took = range_text(*plan.seconds)
        told = "as the runs like it on this machine took; longer while the machine has more other work"
        rows += f'<div title="{told}"><dt>In about</dt><dd><strong>{took}</strong>, longer if busy</dd></div>'
    elif plan.untold:
        told = "by the runs of this base model with this method, in the same training loop, that ended on this machine"
        rows += f'<div title="{told}"><dt>Time</dt><dd>known after the first run like it</dd></div>'
    steps = f'<p class="hint loop">{escape(plan.steps_note)} See All settings.</p>' if plan.steps_note else ""
    loop = f'<p class="hint loop">{escape(plan.loop.why)}</p>' if plan.loop else ""
    who = f"<strong>{escape(model.name)}</strong> learns <strong>{escape(dataset)}</strong> with {escape(method)}"
    return f'<p class="who-learns">{who}</p><dl class="sums">{rows}</dl>{steps}{loop}{memory_html(plan)}'


def memory_html(plan: Plan) -> str:
    """The estimate, part by part, against what the run may take."""
    needs = plan.estimate
    if needs is None:
        return ""
    whole = max(needs.total, plan.free_memory) or 1
    parts = _parts(needs)
    bar = "".join(
        f'<i class="part-{name}" style="width:{100 * size / whole:.2f}%" title="{escape(LABELS[name])}: '
        f'{bytes_text(size)}"></i>'
        for name, size in parts
    )
    limit = (
        f'<b style="left:{100 * plan.free_memory / whole:.2f}%" title="{_there_is(plan)}"></b>'
        if needs.total > plan.free_memory
        else ""
    )
    legend = "".join(
        f'<li><i class="part-{name}"></i>{escape(LABELS[name])}<span>{bytes_text(size)}</span></li>'
        for name, size in parts
    )
    return (
        f'<div class="memory"><div class="memory-bar">{bar}{limit}</div>'
        f"<details><summary>Where the memory goes</summary><ul>{legend}</ul>"
        f'<p class="hint">Peak, estimated for {escape(plan.device)}. The run measures it.</p></details></div>'
    )


def state_html(plan: Plan) -> str:
    """Whether it can start and whether it fits, in one line beside Start."""
    if plan.problems:
        things = "1 thing" if len(plan.problems) == 1 else f"{len(plan.problems)} things"
        return (
            f'<div class="state"><span class="badge bad">Cannot start</span>'
            f'<button type="button" class="to-problem">{things} to mend first</button></div>'
        )
    if plan.estimate is None:
        return ""
    total, there = bytes_texts(plan.estimate.total, plan.free_memory)
    verdict, kind = ("Fits", "good") if plan.fits else ("Does not fit", "bad")
    return (
        f'<div class="state"><span class="badge {kind}">{verdict}</span>'
        f"<span><strong>{total.split()[0]}</strong> of {there} {_there_is(plan)}</span></div>"
    )


def _there_is(plan: Plan) -> str:
    return "allowed" if plan.memory_limited else "free"


def words_html(plan: Plan) -> str:
    """Above Start: what forbids it, what will probably go wrong, then what is worth knowing."""
    warnings = "".join(note_html(warning, "warn") for warning in plan.warnings)
    notes = "".join(map(note_html, plan.notes))
    said = problems_html(plan.problems) + warnings + notes
    return f'<div class="stack">{said}</div>' if said else ""


def instead_html(service: Service, dataset_id: int) -> str:
    """A model that can learn the dataset, one press away, for where the chosen one cannot."""
    if fitting := service.planning.bases_for(dataset_id):
        name, label = fitting[0].name, f"Train {fitting[0].name}"
        link = f"train?dataset={dataset_id}&base={fitting[0].id}"
    else:
        name = service.planning.hub_model_for(dataset_id)
        label, link = f"Get {name}", f"models?hub={quote(name)}"
    return (
        f'<p class="instead"><b>{escape(name)}</b> can learn it. '
        f'<a class="button" href="{escape(link)}">{escape(label)}</a></p>'
    )


def check_line_html(check: Preflight, dataset_id: int, max_length: int) -> str:
    """What the data check found, in a line or two; bad rows with their reasons."""
    link = f'<a href="dataset?id={dataset_id}">See any row</a>'
    cut = (
        f"{check.truncated_rows:,} cut at {max_length:,} tokens (the longest has {check.longest:,})"
        if check.truncated_rows
        else f"none cut, the longest has {check.longest:,} tokens"
    )
    notes = notes_html(check) + _to_mend(check, dataset_id)
    if not check.bad_rows:
        return f'<p class="check-line good">All {check.rows:,} rows can be used; {cut}. {link}</p>{notes}'
    rows = "".join(f"<li>Row {bad.row:,}: {escape(bad.reason)}</li>" for bad in check.bad[:REASONS])
    more = check.bad_rows - min(REASONS, len(check.bad))
    rest = f'<li><a href="dataset?id={dataset_id}">and {more:,} more</a></li>' if more > 0 else ""
    return (
        f'<p class="check-line warn">{check.bad_rows:,} of {check.rows:,} rows cannot be used; {cut}. {link}</p>'
        f'<ul class="reasons">{rows}{rest}</ul>{notes}'
    )


def _to_mend(check: Preflight, dataset_id: int) -> str:
    """Where the check found what harms and can be mended, the way there."""
    found = sum(finding.severity == "warn" or finding.mend is not None for finding in check.findings)
    if not found:
        return ""
    things = "1 thing" if found == 1 else f"{found} things"
    return f'<p class="hint"><a href="dataset?id={dataset_id}">The check found {things} to look at, or to mend</a></p>'


def _parts(needs: Estimate) -> list[tuple[str, int]]:
    return [(name, size) for name in LABELS if (size := getattr(needs, name))]
