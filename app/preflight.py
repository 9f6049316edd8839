"""How a checked dataset looks: a row with its trained tokens coloured, the lengths as a histogram, the bad rows."""

from __future__ import annotations

from app.actions import action_html
from app.components import count_text, duration_text, escape, figures_html, note_html
from jobs.service.datasets import Preflight, RowPreview, Segment

MOST_TOKENS = 4_000  # of one row, on the page
LISTED = 1_000  # bad rows by number


def preview_html(seen: RowPreview) -> str:
    """One row as the trainer will see it. Each token is a span; what is trained is coloured."""
    if seen.problem:
        return (
            note_html(f"Row {seen.row} cannot be used: {seen.problem}", "warn")
            + f'<pre class="log raw-row">{escape(seen.raw)}</pre>'
        )
    tokens = "".join(_token(number, segment) for number, segment in enumerate(seen.segments[:MOST_TOKENS], 1))
    more = len(seen.segments) - MOST_TOKENS
    rest = f'<p class="hint">and {more:,} tokens more</p>' if more > 0 else ""
    cut = f'<li class="cut">{seen.cut_tokens:,} cut off</li>' if seen.cut_tokens else ""
    context = seen.tokens - seen.trained_tokens - seen.cut_tokens
    return (
        f'<ul class="legend"><li class="trained">{seen.trained_tokens:,} trained</li>'
        f'<li class="context">{context:,} read only</li>{cut}<li class="all">{seen.tokens:,} tokens</li></ul>'
        f'<div class="tokens">{tokens}</div>{rest}'
    )


def _token(number: int, segment: Segment) -> str:
    text = escape(segment.text).replace("\n", '<i aria-hidden="true">↵</i>\n')
    return f'<span class="{escape(segment.kind)}" title="token {number}">{text}</span>'


def report_html(check: Preflight, max_length: int) -> str:
    """What a check of every row found."""
    share = f"{100 * check.trained_tokens / check.tokens:.0f} % of them trained" if check.tokens else ""
    figures = figures_html(
        [
            ("Good rows", count_text(check.good_rows), f"of {check.rows:,}"),
            ("Bad rows", count_text(check.bad_rows), "listed below" if check.bad_rows else "every row can be used"),
            ("Cut off", count_text(check.truncated_rows), f"rows longer than {max_length:,} tokens"),
            ("Tokens", count_text(check.tokens), share),
            ("Longest", count_text(check.longest), f"median {check.median:,}, 95 % below {check.p95:,}"),
        ]
    )
    return (
        f'<div class="stack">{figures}{notes_html(check)}{histogram_html(check, max_length)}{bad_rows_html(check)}'
        f'<p class="hint">Checked with the real tokenizer in {_took(check.seconds)}.</p></div>'
    )


def notes_html(check: Preflight) -> str:
    """What is worth knowing of the data with this model, such as answers that its template hides from the loss."""
    return "".join(note_html(note) for note in check.notes)


def histogram_html(check: Preflight, max_length: int) -> str:
    """Rows by their length in tokens, with a line where they are cut."""
    if not check.histogram:
        return ""
    first, last = check.histogram[0][0], check.histogram[-1][1]
    most = max(rows for _, _, rows in check.histogram) or 1
    bars = "".join(
        f'<i class="{"cut" if start >= max_length else "kept"}" style="flex-grow:{below - start};'
        f'height:{max(2, round(100 * rows / most)) if rows else 0}%" title="{start:,} to {below - 1:,} tokens: '
        f'{rows:,} rows"></i>'
        for start, below, rows in check.histogram
    )
    line = ""
    if first < max_length < last:
        at = 100 * (max_length - first) / (last - first)
        side = "left" if at > 60 else "right"
        line = f'<b class="cut-line {side}" style="left:{at:.2f}%"><span>cut at {max_length:,}</span></b>'
    described = f"Histogram of lengths: {check.rows} rows, median {check.median}, longest {check.longest} tokens"
    return (
        f'<figure class="histogram" role="img" aria-label="{described}"><div class="bars">{bars}{line}</div>'
        f"<figcaption><span>{first:,}</span><span>tokens a row, at most {most:,} rows in a bar</span>"
        f"<span>{last - 1:,}</span></figcaption></figure>"
    )


def bad_rows_html(check: Preflight) -> str:
    """Every bad row by number with its reason, after the totals."""
    if not check.bad_rows:
        return ""
    totals = "".join(
        f"<li><strong>{rows:,}</strong> {escape(reason)}</li>"
        for reason, rows in sorted(check.reasons.items(), key=lambda item: -item[1])
    )
    rows = "".join(
        f'<tr><td class="number">{action_html("look", bad.row, str(bad.row))}</td><td>{escape(bad.reason)}</td></tr>'
        for bad in check.bad[:LISTED]
    )
    shown = min(len(check.bad), LISTED)
    first = "" if shown == check.bad_rows else f", the first {shown:,} of them"
    return (
        f'<div class="bad-rows"><h3>Rows that cannot be used</h3><ul class="reasons">{totals}</ul>'
        f"<details{' open' if shown <= 20 else ''}><summary>By number{first}</summary>"
        '<div class="table-wrap tall"><table class="table"><thead><tr><th class="number">Row</th><th>Why</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div></details>"
        '<p class="hint">Press a number to see the row. When you train you can leave these rows out; the log then '
        "names each.</p></div>"
    )


def _took(seconds: float) -> str:
    return duration_text(seconds) if seconds >= 1 else "less than a second"
