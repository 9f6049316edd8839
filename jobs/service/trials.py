"""Rows of a run's own data to try its adapter on: validation rows where an evaluation named some."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jobs.data.columns import Mapping, Shape
from jobs.data.conversation import text_of
from jobs.data.mends import Mended, mended
from jobs.data.values import extract_of, tagged, texts_of
from jobs.errors import RowProblem, UserError
from jobs.service.runs import Runs
from jobs.spec import DatasetRef
from jobs.tasks.rewriting import pair

_LOOKED_AT = 200  # rows of the file, where no evaluation names any


def rows_to_try(runs: Runs, run_id: int, names: Sequence[str], limit: int = 5) -> tuple[list[dict[str, str]], bool]:
    """Inputs by their names, and whether they come from rows that the run has not trained on.

    Empty where the run or its dataset is gone.
    """
    try:
        data = runs.get(run_id).spec.dataset
    except UserError:
        return [], False
    evaluation = runs.evaluation(run_id)
    numbers = [each["row"] for each in (evaluation.details.get("samples") or [])] if evaluation else []
    if not data.rows.is_file():
        return [], False
    found = itertools.islice(_inputs(_rows(data, numbers), data.mapping, names), limit)
    return list(found), bool(numbers)


def inputs_of(runs: Runs, run_id: int, inputs: dict[str, bool]) -> dict[str, bool]:
    """Of a task's inputs those that the run's data had: a classifier of single texts is asked for no second one."""
    try:
        columns = runs.get(run_id).spec.dataset.mapping.columns
    except UserError:
        return inputs
    return {name: must for name, must in inputs.items() if must or name in columns}


def _rows(data: DatasetRef, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """The rows of these numbers, or the first, as the run's mends leave them."""
    if not numbers:
        rows = itertools.islice(mended(data.rows, data.mapping, data.mends), _LOOKED_AT)
        yield from (row for _, row, _ in rows if row)
        return
    kept = Mended(data.rows, data.mapping, data.mends)
    for number in numbers:
        (_, row, _), _, left_out_by = kept.row(number)
        if row and not left_out_by:
            yield row


def _inputs(rows: Iterable[dict[str, Any]], mapping: Mapping, names: Sequence[str]) -> Iterator[dict[str, str]]:
    for row in rows:
        try:
            given = _given(row, mapping)
        except RowProblem:
            continue
        yield {name: given.get(name, "") for name in names}


def _given(row: dict[str, Any], mapping: Mapping) -> dict[str, str]:
    """The row's side that a model is asked with. Raises RowProblem."""
    match mapping.shape:
        case Shape.TAGGED:
            return {"text": " ".join(tagged(row, mapping)[0])}
        case Shape.EXTRACTIVE:
            asked = extract_of(row, mapping)
            return {"question": asked.question, "context": asked.context}
        case Shape.LABELLED | Shape.SCORED:
            text, second = texts_of(row, mapping)
            return {"text": text, "text_pair": second}
        case Shape.TEXT:
            return {"text": text_of(row, mapping.columns["text"])}
        case _:
            return {"text": pair(row, mapping)[0]}
