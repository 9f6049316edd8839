"""The check of a whole dataset before Start, and the preview of one row: both through the task's own `encode`.

Runs in the token child (jobs/data/child.py), in memory bounded by one batch of rows and one number a row.
"""

from __future__ import annotations

import json
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from jobs.data.columns import Mapping
from jobs.data.encoding import encode_in_batches
from jobs.data.findings import Finding, Findings, reason_kind
from jobs.data.mends import Mended, MendRef, mended
from jobs.data.store import count_rows
from jobs.errors import RowProblem
from jobs.frozen import Frozen
from jobs.tasks.base import Encoded, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BAD_ROWS_LISTED = 1_000
REASONS_LISTED = 100
BUCKETS = 30
SEGMENTS = 20_000  # tokens of one row that a preview shows one by one
RAW_CHARS = 20_000
LABELS_COUNTED = 10_000  # different ones; more are no labels
EXAMPLE_PROMPTS = 8
PROMPT_CHARS = 500


class Segment(Frozen):
    """A piece of a rendered row. Consecutive tokens of one kind are kept apart, so that a page can show each."""

    text: str
    kind: str  # "trained", "context" (seen, not trained) or "cut" (beyond the maximum length)
    tag: str = ""  # what a head learns of this token


class RowPreview(Frozen):
    row: int  # 1-based, as counted in the uploaded file
    tokens: int
    trained_tokens: int
    cut_tokens: int
    segments: tuple[Segment, ...]  # one a token
    second: tuple[Segment, ...] = ()  # of a pair's other text: the worse answer, what a source is turned into
    target: str = ""  # what a head learns of the row, in words
    notes: tuple[str, ...] = ()  # what the chosen chat template means for this model
    problem: str | None  # why this row is bad; then segments are empty and `raw` shows the row
    raw: str


class BadRow(Frozen):
    row: int
    reason: str


class Preflight(Frozen):
    """What a check of the whole file found. Lengths in tokens of the chosen base model."""

    rows: int
    good_rows: int
    bad_rows: int
    bad: tuple[BadRow, ...]  # the first 1,000, in the file's order
    reasons: dict[str, int]  # reason -> how many rows, all of them
    truncated_rows: int  # longer than the maximum length
    tokens: int  # after truncation
    trained_tokens: int
    longest: int
    median: int
    p95: int
    p99: int = 0
    spread: float = 0.0  # standard deviation of a row's tokens, after truncation, with all its texts
    histogram: tuple[tuple[int, int, int], ...]  # (from, below, rows), lengths before truncation
    example_prompts: tuple[str, ...]  # a few first user turns, for the fixed prompts
    labels: dict[str, int] = Field(default_factory=dict)  # how often each comes, the most frequent first
    seconds: float
    notes: tuple[str, ...] = ()  # worth knowing, forbidding nothing
    findings: tuple[Finding, ...] = ()  # the worst first
    left_out_rows: int = 0  # by the dataset's mends


class Progress(Frozen):
    done: int
    total: int
    text: str


def preview(
    rows: Mended,
    number: int,
    mapping: Mapping,
    task: Task,
    params: Any,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
) -> RowPreview:
    """One row as the trainer will see it. Raises UserError where there is no such row."""
    (_, values, problem), raw, left_out_by = rows.row(number)
    raw = raw[:RAW_CHARS]
    try:
        if left_out_by:
            raise RowProblem(f"your mend {left_out_by!r} leaves it out")
        if values is None:
            raise RowProblem(problem or "it cannot be read")
        encoded = task.encode(values, mapping, tokenizer, params)
        used = task.cut(encoded, length)
    except RowProblem as bad:
        return RowPreview(row=number, tokens=0, trained_tokens=0, cut_tokens=0, segments=(), problem=str(bad), raw=raw)
    return RowPreview(
        row=number,
        tokens=sum(len(text.input_ids) for text in encoded.texts),
        trained_tokens=sum(sum(text.trained) for text in used.texts),
        cut_tokens=sum(len(text.input_ids) for text in encoded.texts) - sum(len(text.input_ids) for text in used.texts),
        second=tuple(segments(encoded.second, used.second)) if encoded.second and used.second else (),
        segments=tuple(segments(encoded, used, task.token_tags(encoded))),
        target=task.target_text(encoded, params),
        problem=None,
        raw=raw,
    )


def segments(encoded: Encoded, used: Encoded, tags: Sequence[str] = ()) -> Iterator[Segment]:
    """The row's text in pieces, one a token, none lost: together they are the whole text. `used`: what is left of it
    when it is cut; `tags`: one for each token.

    A character of several tokens is shown with the first of them.
    """
    shown = 0
    total = len(encoded.offsets)
    pairs = zip(encoded.input_ids, used.input_ids, strict=False)
    left = next((place for place, (one, other) in enumerate(pairs) if one != other), len(used.input_ids))
    closing = len(used.input_ids) - left  # special tokens at the end, which some tasks keep
    for place, (_, end) in enumerate(encoded.offsets):
        last = place == total - 1 or place == SEGMENTS - 1
        kind = "cut" if left <= place < total - closing else "trained" if encoded.trained[place] else "context"
        end = len(encoded.text) if place == total - 1 else end
        yield Segment(text=encoded.text[shown : max(shown, end)], kind=kind, tag=tags[place] if tags else "")
        shown = max(shown, end)
        if last:
            return


def check(
    rows: Path,
    mapping: Mapping,
    task: Task,
    params: Any,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    progress: Callable[[Progress], None] = lambda _: None,
    mends: Sequence[MendRef] = (),
) -> Preflight:
    """Every row that the mends leave through `encode`. `progress` may raise to end it."""
    began = time.monotonic()
    total = count_rows(rows)
    bad: list[BadRow] = []
    reasons: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    lengths = array("i")
    squares = 0
    good = truncated = tokens = trained = half_trained = untrained_answers = seen = 0
    prompts: list[str] = []
    findings = Findings(mapping, task, tokenizer, length)
    for batch in encode_in_batches(mended(rows, mapping, mends), mapping, task, params, tokenizer):
        findings.batch(batch)
        for (number, values, _), result in batch:
            try:
                if isinstance(result, RowProblem):
                    raise result
                longest = max(len(text.input_ids) for text in result.texts)
                lengths.append(longest)
                used = task.cut(result, length)
            except RowProblem as found:
                if len(bad) < BAD_ROWS_LISTED:
                    bad.append(BadRow(row=number, reason=str(found)))
                kind = reason_kind(str(found))
                reasons[kind if kind in reasons or len(reasons) < REASONS_LISTED else "other reasons"] += 1
                continue
            good += 1
            if longest > length:
                truncated += 1
                findings.shortened(number, result, used)
            row_tokens = sum(len(text.input_ids) for text in used.texts)
            tokens += row_tokens
            squares += row_tokens**2
            trained += sum(text.trained.count(True) for text in used.texts)
            if len(labels) < LABELS_COUNTED:
                labels.update(task.target_labels(used))
            if result.untrained_answers:
                half_trained += 1
                untrained_answers += result.untrained_answers
            if values and len(prompts) < EXAMPLE_PROMPTS:
                prompt = _prompt(task, values, mapping)
                if prompt and prompt not in prompts:
                    prompts.append(prompt)
        seen += len(batch)
        read = batch[-1][0][0]
        progress(Progress(done=read, total=total, text=f"Checked {read:,} of {total:,} rows"))
    ordered = sorted(lengths)
    notes = []
    if untrained_answers:
        notes.append(
            f"This model's chat template rewrites earlier turns: in {half_trained:,} rows {untrained_answers:,} "
            "earlier answers are read but not trained. The last answer of every row is."
        )
    return Preflight(
        rows=total,
        good_rows=good,
        bad_rows=seen - good,
        bad=tuple(bad),
        reasons=dict(reasons.most_common()),
        truncated_rows=truncated,
        tokens=tokens,
        trained_tokens=trained,
        longest=ordered[-1] if ordered else 0,
        median=_rank(ordered, 0.5),
        p95=_rank(ordered, 0.95),
        p99=_rank(ordered, 0.99),
        spread=round(max(0.0, squares / good - (tokens / good) ** 2) ** 0.5, 3) if good else 0.0,
        histogram=tuple(histogram(ordered)),
        example_prompts=tuple(prompts),
        labels=dict(labels.most_common()),
        seconds=round(time.monotonic() - began, 3),
        notes=tuple(notes),
        findings=findings.found(reasons, ((row.row, row.reason) for row in bad), labels, params),
        left_out_rows=total - seen,
    )


def histogram(ordered: list[int]) -> Iterator[tuple[int, int, int]]:
    """Up to BUCKETS buckets of one round width. A few far longer rows share the last, so that the rest keeps its
    shape; it alone is wider."""
    if not ordered:
        return
    longest = ordered[-1]
    usual = _rank(ordered, 0.995)
    top = longest if longest <= 2 * usual else usual
    width = _round_width((top + 1) / BUCKETS)
    count = top // width + 1
    counts = Counter(min(length // width, count) for length in ordered)
    first = min(counts)
    for bucket in range(first, count):
        yield bucket * width, (bucket + 1) * width, counts[bucket]
    if counts[count]:
        yield count * width, longest + 1, counts[count]


def _round_width(least: float) -> int:
    step = 1
    while True:
        for factor in (1, 2, 5):
            if factor * step >= least:
                return factor * step
        step *= 10


def _rank(ordered: list[int], share: float) -> int:
    """Nearest rank: the smallest length that at least this share of the rows does not exceed."""
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else 0


def _prompt(task: Task, values: dict[str, Any], mapping: Mapping) -> str:
    turns = task.prompt_messages(values, mapping)
    last = next((turn["content"].strip() for turn in turns if turn["role"] == "user"), "")
    return last if len(last) <= PROMPT_CHARS else ""


def cached(path: Path) -> Preflight | None:
    """A report kept at `path`; None where there is none, or one of an older form."""
    try:
        return Preflight.model_validate(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return None
