"""How a checked dataset looks: a row with its trained tokens coloured, the lengths as a histogram, the bad rows."""

from __future__ import annotations

from collections.abc import Sequence

from app.actions import action_html
from app.components import count_text, duration_text, escape, figures_html, note_html
from app.dataset.mends import findings_html
from jobs.service.datasets import Preflight, RowPreview, Segment

MOST_TOKENS = 4_000  # of one row, on the page
LISTED = 1_000  # bad rows by number
LABELS_SHOWN = 20
TAG_COLOURS = 8  # in static/pages.css


def preview_html(seen: RowPreview) -> str:
    """One row as the trainer will see it. Each token is a span; what is trained, or tagged, is coloured."""
    notes = f'<div class="stack notes">{"".join(map(note_html, seen.notes))}</div>' if seen.notes else ""
    if seen.problem:
        return (
            notes
            + note_html(f"Row {seen.row} cannot be used: {seen.problem}", "warn")
            + f'<pre class="log raw-row">{escape(seen.raw)}</pre>'
        )
    more = len(seen.segments) - MOST_TOKENS
    rest = f'<p class="hint">and {more:,} tokens more</p>' if more > 0 else ""
    cut = f'<li class="cut">{seen.cut_tokens:,} cut off</li>' if seen.cut_tokens else ""
    context = seen.tokens - seen.trained_tokens - seen.cut_tokens
    trained = f'<li class="trained">{seen.trained_tokens:,} trained</li>' if seen.trained_tokens else ""
    tags = tuple(dict.fromkeys(_entity(segment.tag) for segment in seen.segments if _entity(segment.tag)))
    shown = _tokens(seen.segments, tags)
    if seen.second:
        shown = (
            f'<div class="pair-of-texts"><div><h4>{"Better answer" if _is_pair(seen) else "Source"}</h4>{shown}</div>'
            f"<div><h4>{'Worse answer' if _is_pair(seen) else 'Target'}</h4>{_tokens(seen.second, ())}</div></div>"
        )
    learns = f'<p class="learns">Learns <strong class="badge good">{escape(seen.target)}</strong></p>'
    return (
        f'{notes}<ul class="legend">{trained}<li class="context">{context:,} read only</li>{cut}'
        f'<li class="all">{seen.tokens:,} tokens</li></ul>{shown}{_tag_legend(tags)}'
        f"{learns if seen.target else ''}{rest}"
    )


def _is_pair(seen: RowPreview) -> bool:
    """Two whole answers, rather than a text and what it becomes: both begin with the same prompt."""
    return any(segment.kind == "trained" for segment in seen.segments)


def _tokens(segments: Sequence[Segment], tags: Sequence[str]) -> str:
    parts = []
    entity = ""
    for number, segment in enumerate(segments[:MOST_TOKENS], 1):
        if segment.tag or segment.kind != "context" or segment.text[:1].isspace():
            entity = _entity(segment.tag)  # else it goes on with a word, whose first token alone is tagged
        colour = f" tagged-token tag-{tags.index(entity) % TAG_COLOURS}" if entity else ""
        kind = "context" if tags and segment.kind == "trained" else segment.kind  # there the tags' colours tell
        title = f"token {number}" + (f": {escape(segment.tag)}" if segment.tag else "")
        text = escape(segment.text).replace("\n", '<i aria-hidden="true">↵</i>\n')
        parts.append(f'<span class="{escape(kind)}{colour}" title="{title}">{text}</span>')
    return f'<div class="tokens">{"".join(parts)}</div>'


def _entity(tag: str) -> str:
    """What a tag is about: B-PER and I-PER are both PER; O is nothing."""
    return "" if tag == "O" else tag[2:] if tag[:2] in ("B-", "I-") else tag


def _tag_legend(tags: Sequence[str]) -> str:
    items = "".join(
        f'<li><i class="tag-{place % TAG_COLOURS}"></i>{escape(tag)}</li>' for place, tag in enumerate(tags)
    )
    return f'<ul class="tag-legend">{items}</ul>' if items else ""


def report_html(check: Preflight, max_length: int, mends: dict[str, str] | None = None) -> str:
    """What a check of every row found. `mends`: what the mends are called, by name."""
    share = f"{100 * check.trained_tokens / check.tokens:.0f} % of them trained" if check.trained_tokens else ""
    left_out = f"of {check.rows:,}" + (f", {check.left_out_rows:,} mended away" if check.left_out_rows else "")
    figures = figures_html(
        [
            ("Good rows", count_text(check.good_rows), left_out),
            ("Bad rows", count_text(check.bad_rows), "listed below" if check.bad_rows else "every row can be used"),
            ("Cut off", count_text(check.truncated_rows), f"rows longer than {max_length:,} tokens"),
            ("Tokens", count_text(check.tokens), share),
            ("Longest", count_text(check.longest), f"median {check.median:,}, 95 % below {check.p95:,}"),
        ]
    )
    return (
        f'<div class="stack">{figures}{findings_html(check.findings, mends or {})}{notes_html(check)}'
        f"{labels_html(check)}{histogram_html(check, max_length)}{bad_rows_html(check)}"
        f'<p class="hint">Checked with the real tokenizer in {_took(check.seconds)}.</p></div>'
    )


def notes_html(check: Preflight) -> str:
    """What is worth knowing of the data with this model, such as answers that its template hides from the loss."""
    return "".join(note_html(note) for note in check.notes)


def labels_html(check: Preflight) -> str:
    """How often each label comes, as bars."""
    if len(check.labels) < 2:
        return ""
    most = max(check.labels.values())
    bars = "".join(
        f'<li class="chosen"><span class="label-name">{escape(label)}</span>'
        f'<span class="bar"><i style="width:{100 * count / most:.1f}%"></i></span>'
        f'<span class="number">{count:,}</span></li>'
        for label, count in list(check.labels.items())[:LABELS_SHOWN]
    )
    more = len(check.labels) - LABELS_SHOWN
    rest = f'<p class="hint">and {more:,} labels more</p>' if more > 0 else ""
    return f'<div class="label-counts"><h3>Labels</h3><ul class="label-bars">{bars}</ul>{rest}</div>'


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
    rows_text = "1 row" if most == 1 else f"{most:,} rows"
    described = f"Histogram of lengths: {check.rows} rows, median {check.median}, longest {check.longest} tokens"
    return (
        f'<figure class="histogram" role="img" aria-label="{described}"><div class="bars">{bars}{line}</div>'
        f"<figcaption><span>{first:,}</span><span>tokens a row, at most {rows_text} in a bar</span>"
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
