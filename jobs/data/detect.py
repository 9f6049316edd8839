"""What a dataset's shape is, found out by looking at a sample of its rows. Never asks; says how sure it is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, Literal

from jobs.data.columns import ROLES, SHAPE_LABELS, SPELLINGS, Mapping, Shape, column_paths, plain_name
from jobs.data.guesses import ABOUT, CLEAR, LIKELY, VAGUE, Guess, Look, guesses, is_text, separator
from jobs.data.numbers import Decimal, decimal_of, unit_of
from jobs.data.values import check_row
from jobs.errors import RowProblem
from jobs.frozen import Frozen

Certainty = Literal["certain", "likely", "a guess"]

SURE_SHARE = 0.5  # of the sampled rows have to fit; the rest are bad rows, which the check of the file names
CERTAIN_SHARE = 0.95
_FEW = 3  # rows that speakers' names alone do not prove to be more than text
_WRITTEN_OUT = (Shape.MESSAGES, Shape.INSTRUCTION, Shape.PROMPT)
WHOLE_TEXT = ("text", "markdown")  # formats whose rows are texts, with no columns to ask about
# How each role's columns are called, where that differs by shape or from the role's own name.
_KINDS: dict[tuple[Shape, str], tuple[str, ...]] = {
    (Shape.MESSAGES, "messages"): ("conversation",),
    (Shape.SHAREGPT, "conversations"): ("conversation",),
    (Shape.INSTRUCTION, "instruction"): ("instruction", "prompt"),
    (Shape.INSTRUCTION, "input"): ("context",),
    (Shape.INSTRUCTION, "output"): ("completion",),
    (Shape.FEEDBACK, "label"): ("thumb",),
    (Shape.LABELLED, "text"): ("first text", "judged"),
    (Shape.SCORED, "text"): ("first text", "judged"),
    (Shape.LABELLED, "text_pair"): ("second text",),
    (Shape.SCORED, "text_pair"): ("second text",),
    (Shape.LABELLED, "label"): ("label", "weak label"),
    (Shape.SCORED, "score"): ("score", "label"),
    (Shape.EXTRACTIVE, "question"): ("asked",),
    (Shape.EXTRACTIVE, "context"): ("passage",),
    (Shape.REWRITE, "source"): ("source", "long"),
    (Shape.REWRITE, "target"): ("target", "short", "completion"),
}


class Detection(Frozen):
    mapping: Mapping | None  # None only where no column holds text
    text: str  # a sentence or two for the person
    sure: bool
    certainty: Certainty = "a guess"
    fits: int = 0  # of the sampled rows
    runner_up: Mapping | None = None


def detect(rows: list[dict[str, Any]], columns: list[str], file_format: str) -> Detection:
    """The best mapping for the sampled rows, and what was seen."""
    ranked = _ranked(rows, columns, file_format)
    if not ranked:
        said = "No column holds text or conversations. Choose what each column means."
        return Detection(mapping=None, text=said, sure=False)
    best, fits = ranked[0]
    share = fits / len(rows) if rows else 0.0
    certainty: Certainty = "likely"
    if best.strength == CLEAR and share >= CERTAIN_SHARE:
        certainty = "certain"
    elif best.strength == VAGUE or share < SURE_SHARE or not rows:
        certainty = "a guess"
    second = next(
        (
            other
            for other, fitting in ranked[1:]
            if other.mapping.shape is not best.mapping.shape
            and fitting >= SURE_SHARE * len(rows)
            and (certainty != "certain" or other.strength == CLEAR)
        ),
        None,
    )
    text = f"{best.said}; {fits} of {len(rows)} sampled rows fit: {certainty}."
    if second:
        label = SHAPE_LABELS[second.mapping.shape]
        text += f" It could also be: {label[0].lower()}{label[1:]}."
    return Detection(
        mapping=best.mapping,
        text=text,
        sure=certainty != "a guess",
        certainty=certainty,
        fits=fits,
        runner_up=second.mapping if second else None,
    )


def _ranked(rows: list[dict[str, Any]], columns: list[str], file_format: str) -> list[tuple[Guess, int]]:
    """Every guess with how many rows fit it, the best first: it fits, it is clear, it is the most special."""
    if file_format in WHOLE_TEXT:
        found = [Guess(Mapping(shape=Shape.TEXT, columns={"text": columns[0]}), "Plain text", CLEAR)]
    elif file_format == "dialogue":
        # What was read out of the text, and the text itself, which each row keeps.
        strength = CLEAR if len(rows) >= _FEW else LIKELY
        read = (guess for guess in guesses(Look(rows, columns)) if guess.mapping.shape in _WRITTEN_OUT)
        found = [replace(guess, strength=strength) for guess in itertools.islice(read, 1)]
        found.append(Guess(Mapping(shape=Shape.TEXT, columns={"text": "text"}), "Plain text", strength))
    else:
        found = list(guesses(Look(rows, columns)))
    counted = [(guess, sum(_fits(row, guess.mapping) for row in rows)) for guess in found]
    return sorted(counted, key=lambda item: (item[1] < SURE_SHARE * len(rows), -item[0].strength))


def columns_for(shape: Shape, columns: list[str], rows: list[dict[str, Any]]) -> dict[str, str]:
    """A guess at the column of each role of a shape: as detection would, else its usual spellings, else the first
    free column with text. Optional roles are filled by name only.
    """
    for guess in guesses(Look(rows, columns)):
        if guess.mapping.shape is shape:
            return guess.mapping.columns
    chosen: dict[str, str] = {}
    for role in ROLES[shape]:
        for kind in _KINDS.get((shape, role), (role,)):
            look = Look(rows, columns)
            if role not in chosen and kind in SPELLINGS and (named := look.named(kind, chosen.values())):
                chosen[role] = named
    paths = column_paths(rows, columns)
    texts = [column for column in paths if Look(rows, paths).share(column, is_text) >= 0.5]
    texts.sort(key=lambda column: plain_name(column) in ABOUT)  # an id or a title is the last choice
    for role, required in ROLES[shape].items():
        left = [column for column in texts if column not in chosen.values()]
        if required and role not in chosen and left and role not in ("messages", "conversations"):
            chosen[role] = left[0]
    return {role: chosen[role] for role in ROLES[shape] if role in chosen}


def separator_of(rows: list[dict[str, Any]], column: str) -> str:
    """What stands between the labels of one cell; "" where every cell holds one, or lists."""
    return separator(Look(rows, [column]).values(column))


def numbers_of(rows: list[dict[str, Any]], column: str) -> tuple[Decimal, str]:
    """How the column writes its numbers, and the unit around them."""
    values = Look(rows, [column]).values(column)
    unit = unit_of(values)
    return decimal_of(values, unit), unit


def _fits(row: dict[str, Any], mapping: Mapping) -> bool:
    try:
        check_row(row, mapping)
    except RowProblem:
        return False
    return True
