"""How predictions look: labels as bars, tags as coloured spans, an answer marked in its passage, a number, a text.

Also used for the samples of an evaluation. Everything a person or a model wrote is escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.components import escape
from jobs.tasks.predictions import FoundAnswer, Labels, LabelScore, Number, Prediction, Span, Spans, Written

SHOWN_LABELS = 12  # the rest one click away
COLOURS = 8  # of tags, in static/pages.css


def prediction_html(said: Prediction, inputs: dict[str, str], tags: Sequence[str] = ()) -> str:
    """One prediction for one input. `tags`: in whose order colours are given, so that several show them alike."""
    match said:
        case Labels():
            return labels_html(said)
        case Spans():
            return spans_html(said.text, said.spans, tags)
        case FoundAnswer():
            return found_html(said, inputs.get("context", ""))
        case Number():
            return f'<p class="verdict number">{number_text(said.value)}</p>'
        case Written():
            return f'<p class="written">{escape(said.text) or "(nothing)"}</p>'


def labels_html(said: Labels) -> str:
    """Every label with its probability, the most probable first."""
    chosen = ", ".join(said.chosen) if said.chosen else "No label reaches 50 %"
    first = "".join(_bar(each, each.label in said.chosen) for each in said.labels[:SHOWN_LABELS])
    rest = said.labels[SHOWN_LABELS:]
    more = (
        f"<details><summary>{len(rest):,} more labels</summary>"
        f'<ul class="label-bars">{"".join(_bar(each, False) for each in rest)}</ul></details>'
        if rest
        else ""
    )
    return f'<p class="verdict">{escape(chosen)}</p><ul class="label-bars">{first}</ul>{more}'


def _bar(score: LabelScore, chosen: bool) -> str:
    percent = percent_text(score.probability)
    return (
        f'<li{" class=chosen" if chosen else ""}><span class="label-name">{escape(score.label)}</span>'
        f'<span class="bar"><i style="width:{100 * score.probability:.1f}%"></i></span>'
        f'<span class="number">{percent}</span></li>'
    )


def spans_html(text: str, spans: Sequence[Span], tags: Sequence[str] = ()) -> str:
    """The text with its tagged pieces coloured, and what the colours mean. `tags`: in whose order colours are given."""
    order = tuple(dict.fromkeys([*tags, *(span.tag for span in spans)]))
    legend = "".join(
        f'<li><i class="tag-{_colour(tag, order)}"></i>{escape(tag)}</li>'
        for tag in order
        if any(span.tag == tag for span in spans)
    )
    found = f'<ul class="tag-legend">{legend}</ul>' if legend else '<p class="hint">Nothing is tagged.</p>'
    return f'<p class="tagged">{marked(text, spans, order)}</p>{found}'


def marked(text: str, spans: Iterable[Span], order: Sequence[str]) -> str:
    """The text, escaped, with a mark around each span; a screen reader and a copy get the tag's name too."""
    parts, at = [], 0
    for span in sorted(spans, key=lambda span: span.start):
        if span.start < at or span.end > len(text):
            continue
        parts.append(escape(text[at : span.start]))
        parts.append(
            f'<mark class="tag-{_colour(span.tag, order)}" title="{escape(span.tag)}, {percent_text(span.confidence)}">'
            f"{escape(text[span.start : span.end])}<small>{escape(span.tag)}</small></mark>"
        )
        at = span.end
    return "".join(parts) + escape(text[at:])


def _colour(tag: str, order: Sequence[str]) -> int:
    return order.index(tag) % COLOURS


def found_html(said: FoundAnswer, context: str) -> str:
    """The answer, how sure the model is, and where it stands."""
    if said.start is None or said.end is None or not said.text:
        return (
            f'<p class="verdict">No answer in this passage</p><p class="hint">{percent_text(said.confidence)} sure</p>'
        )
    passage = (
        f"{escape(context[: said.start])}<mark>{escape(context[said.start : said.end])}</mark>"
        f"{escape(context[said.end :])}"
    )
    return (
        f'<p class="verdict">{escape(said.text)}</p><p class="hint">{percent_text(said.confidence)} sure</p>'
        f'<p class="passage">{passage}</p>'
    )


def number_text(value: float) -> str:
    """Four digits that count: 3.142, 31,416."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def percent_text(share: float) -> str:
    """0.934 -> '93 %'; near the ends one digit more."""
    percent = 100 * share
    return f"{percent:.0f} %" if 1 <= percent <= 99 or percent in (0, 100) else f"{percent:.1f} %"
