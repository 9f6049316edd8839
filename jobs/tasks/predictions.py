"""What a trained head says of one input. Values only: they cross from the predicting child to the page."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jobs.frozen import Frozen


class LabelScore(Frozen):
    label: str
    probability: float  # 0 to 1


class Labels(Frozen):
    """Every label, the most probable first."""

    kind: Literal["labels"] = "labels"
    labels: tuple[LabelScore, ...]
    chosen: tuple[str, ...]  # the first one; with several labels those at 0.5 and above, which may be none


class Span(Frozen):
    """A piece `text[start:end]` of the input."""

    start: int
    end: int
    text: str
    tag: str
    confidence: float  # 0 to 1


class Spans(Frozen):
    """The tagged pieces of a text, in its order, not overlapping."""

    kind: Literal["spans"] = "spans"
    text: str
    spans: tuple[Span, ...]


class FoundAnswer(Frozen):
    """An answer as it stands in the context, `context[start:end]`; empty, with no place, where there is none."""

    kind: Literal["answer"] = "answer"
    text: str
    start: int | None
    end: int | None
    confidence: float  # 0 to 1


class Number(Frozen):
    """In the units of the data."""

    kind: Literal["number"] = "number"
    value: float


class Written(Frozen):
    """What a text was turned into."""

    kind: Literal["text"] = "text"
    text: str


Prediction = Annotated[Labels | Spans | FoundAnswer | Number | Written, Field(discriminator="kind")]
