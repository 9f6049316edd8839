"""The charts of a run, declared once: which metrics, how their numbers read. static/chart.js draws them.

A chart whose metrics a run has not is not shown; a metric that stands in no chart gets one of its own, named after it.
"""

from __future__ import annotations

from typing import Literal

from jobs.frozen import Frozen

NumberKind = Literal["loss", "rate", "plain", "bytes", "share"]  # share: 0 to 1, read as percent


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
        key="right",
        title="How often it is right",
        kind="share",
        large=True,
        lines=(
            Line(metric="accuracy", label="Accuracy", colour="curve-1", dots=True),
            Line(metric="macro_f1", label="Macro F1", colour="curve-2", dots=True),
            Line(metric="micro_f1", label="Micro F1", colour="curve-3", dots=True),
            Line(metric="exact_match", label="Exactly right", colour="curve-1", dots=True),
            Line(metric="f1", label="F1 over words", colour="curve-2", dots=True),
            Line(metric="entity_f1", label="Entity F1", colour="curve-2", dots=True),
            Line(metric="entity_precision", label="Precision", colour="curve-3", dots=True),
            Line(metric="entity_recall", label="Recall", colour="curve-4", dots=True),
        ),
    ),
    Chart(
        key="preference",
        title="The better answer is likelier",
        kind="share",
        large=True,
        lines=(
            Line(metric="train_preference_accuracy", label="Training", colour="curve-1", smooth=True),
            Line(metric="preference_accuracy", label="Validation", colour="curve-2", dots=True),
        ),
    ),
    Chart(
        key="rewards",
        title="Rewards: how far it moved",
        kind="plain",
        lines=(
            Line(metric="reward_margin", label="Margin", colour="curve-1", dots=True),
            Line(metric="chosen_reward", label="Better answers", colour="curve-3", dots=True),
            Line(metric="rejected_reward", label="Worse answers", colour="curve-2", dots=True),
        ),
    ),
    Chart(
        key="train-rewards",
        title="Rewards while training",
        kind="plain",
        lines=(
            Line(metric="train_reward_margin", label="Margin", colour="curve-1", smooth=True),
            Line(metric="train_chosen_reward", label="Better answers", colour="curve-3"),
            Line(metric="train_rejected_reward", label="Worse answers", colour="curve-2"),
        ),
    ),
    Chart(
        key="texts",
        title="Likeness to the right texts (0 to 100)",
        kind="plain",
        large=True,
        lines=(
            Line(metric="chrf", label="chrF", colour="curve-1", dots=True),
            Line(metric="bleu", label="BLEU", colour="curve-2", dots=True),
            Line(metric="rouge1", label="ROUGE-1", colour="curve-3", dots=True),
            Line(metric="rouge2", label="ROUGE-2", colour="curve-4", dots=True),
            Line(metric="rougeL", label="ROUGE-L", colour="curve-5", dots=True),
        ),
    ),
    Chart(
        key="errors",
        title="How far off",
        kind="plain",
        large=True,
        from_zero=True,
        lines=(Line(metric="mae", label="Mean error", colour="curve-1", dots=True),),
    ),
    Chart(
        key="squares",
        title="Mean squared error",
        kind="plain",
        from_zero=True,
        lines=(Line(metric="mse", label="Mean squared error", colour="curve-2", dots=True),),
    ),
    Chart(
        key="follows",
        title="How well it follows the right numbers",
        kind="plain",
        lines=(
            Line(metric="r2", label="R²", colour="curve-1", dots=True),
            Line(metric="pearson", label="Pearson", colour="curve-2", dots=True),
            Line(metric="spearman", label="Spearman", colour="curve-3", dots=True),
        ),
    ),
    Chart(
        key="perplexity",
        title="Perplexity: how many words it wavers between",
        kind="plain",
        lines=(Line(metric="perplexity", label="Perplexity", colour="curve-2", dots=True),),
    ),
    Chart(
        key="tokens",
        title="Next tokens foretold",
        kind="share",
        lines=(Line(metric="token_accuracy", label="Validation", colour="curve-2", dots=True),),
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
