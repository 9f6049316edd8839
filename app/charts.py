"""The charts of a run, declared once: which metrics, how their numbers read. static/chart.js draws them."""

from __future__ import annotations

from typing import Literal

from jobs.frozen import Frozen

NumberKind = Literal["loss", "rate", "plain", "bytes"]


class Line(Frozen):
    metric: str
    label: str
    colour: str  # a name of app.theme's palette
    smooth: bool = False  # drawn faint, with its running mean over it
    dots: bool = False  # few points: mark each


class Chart(Frozen):
    key: str
    title: str
    kind: NumberKind
    lines: tuple[Line, ...]
    large: bool = False
    from_zero: bool = False


CHARTS: tuple[Chart, ...] = (
    Chart(
        key="loss",
        title="Loss",
        kind="loss",
        large=True,
        lines=(
            Line(metric="loss", label="Training", colour="curve-1", smooth=True),
            Line(metric="eval_loss", label="Validation", colour="curve-2", dots=True),
        ),
    ),
    Chart(
        key="rate",
        title="Learning rate",
        kind="rate",
        lines=(Line(metric="learning_rate", label="Learning rate", colour="curve-3"),),
    ),
    Chart(
        key="norm",
        title="Gradient norm",
        kind="plain",
        lines=(Line(metric="grad_norm", label="Gradient norm", colour="curve-1"),),
    ),
    Chart(
        key="speed",
        title="Tokens per second",
        kind="plain",
        from_zero=True,
        lines=(Line(metric="tokens_per_second", label="Tokens/s", colour="curve-3"),),
    ),
    Chart(
        key="memory",
        title="Memory",
        kind="bytes",
        from_zero=True,
        lines=(Line(metric="memory", label="Memory", colour="curve-2"),),
    ),
)


def charts_json() -> list[dict[str, object]]:
    """What the page's script needs to draw them."""
    return [chart.model_dump() for chart in CHARTS]
