"""What a check of the whole file finds: rows that cannot be used, stand twice, contradict each other, hold special
tokens as text, lose their end, or have a prompt or a label that deserves a look; and which mend helps.

`Findings.batch` is called with every batch of the check and keeps a few numbers a row (64-bit digests, never texts):
some 40 MB for a million rows. The sums are made once, at the end.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jobs.data.columns import Mapping as Columns
from jobs.data.columns import Shape, value_at
from jobs.data.conversation import tools
from jobs.data.mends.base import MendRef, key_of
from jobs.data.mends.texts import repaired, spellings
from jobs.data.rendering import has_place_for_tools
from jobs.data.store import Stored
from jobs.data.turns import CONTENT_KEYS
from jobs.data.values import extract_of, tagged
from jobs.errors import RowProblem
from jobs.frozen import Frozen
from jobs.tasks.base import Encoded, Task

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

ROWS_LISTED = 10
_SHORT_ANSWER = 2  # tokens, the end mark among them
_RARE = 0.05  # what fewer rows than this share do is worth a look; what more do is the data's way
_LONG_ANSWER = 8  # times the median
_NOT_TEXT = frozenset(("label", "score", "tools"))

Severity = Literal["bad", "warn", "info"]

_NAMES_COLUMN = re.compile(r"""(?:its|it has no) ('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")
# The reasons for which rows cannot be used (without what is in brackets), and what mends them.
_MENDED_REASONS = {
    "two user turns follow each other": "merge_turns",
    "two assistant turns follow each other": "merge_turns",
    "it begins with the assistant, so there is nothing to answer": "drop_leading_answer",
    "its last turn is the user's: there is no answer to learn": "drop_trailing_question",
    "a turn is empty": "drop_empty_turns",
    "a turn is null": "drop_empty_turns",
}
_WORDS = {  # of one row, of several
    "merge_turns": ("has", "have", "two turns of one speaker that follow each other."),
    "drop_leading_answer": ("begins", "begin", "with the assistant, so that there is nothing to answer."),
    "drop_trailing_question": ("ends", "end", "with the user, so that there is no answer to learn."),
    "drop_empty_turns": ("has", "have", "an empty turn."),
    "drop_bad": ("cannot", "cannot", "be used; below is why."),
}
# Reasons that lie in the model or the settings: no mend of the data helps.
_NOT_THE_DATA = (
    *("its answer begins beyond", "its answer lies beyond", "its question leaves no room", "the maximum length"),
    *("its two answers are the same up to", "the model's chat template", "an answer calls tools"),
)


class Finding(Frozen):
    """Something that the check found in several rows."""

    kind: str
    severity: Severity  # "bad": these rows cannot be used; "warn": they harm; "info": worth knowing
    words: str  # a sentence that begins with how many rows
    count: int
    rows: tuple[int, ...]  # the first of them
    mend: MendRef | None = None  # what puts it right


class Findings:
    """Gathers while the check goes over the rows."""

    def __init__(self, mapping: Columns, task: Task, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        self._mapping, self._task, self._length = mapping, task, length
        self._columns = tuple(mapping.columns.values())
        self._texts = tuple(column for role, column in mapping.columns.items() if role not in _NOT_TEXT)
        self._judged = tuple(column for role, column in mapping.columns.items() if role in ("text", "text_pair"))
        self._labelled = mapping.shape is Shape.LABELLED
        self._tagged = mapping.shape is Shape.TAGGED
        self._numbers = array("q")
        self._keys = array("q")
        self._good_numbers = array("q")
        self._prompts = array("q")  # of the good rows
        self._answers = array("i")  # trained tokens of the good rows
        self._text_keys, self._label_keys = array("q"), array("q")
        self._cut = _Listed()
        self._special = _Listed()
        self._broken_tags = _Listed()
        self._toolless = _Listed()
        self._extractive = mapping.shape is Shape.EXTRACTIVE
        self._moved = _Listed()
        self._tools = mapping if mapping.columns.get("tools") and not has_place_for_tools(tokenizer) else None
        self._special_texts: Counter[str] = Counter()
        self._first_pairs, self._pattern = _special_tokens(tokenizer)
        self._first_chars = sorted({pair[0] for pair in self._first_pairs})

    def batch(self, rows: Sequence[tuple[Stored, Encoded | RowProblem]]) -> None:
        """Look at the next rows, each with its tokens or with why it has none."""
        for (number, values, _), encoded in rows:
            if values is None:
                continue
            self._numbers.append(number)
            self._keys.append(key_of(values, self._columns))
            if self._pattern is not None:
                self._look_for_special(number, values)
            if isinstance(encoded, RowProblem):
                continue
            if self._tools and tools(values, self._tools):
                self._toolless.add(number)
            self._good_numbers.append(number)
            trained = encoded.trained
            first = _first(trained)
            self._prompts.append(hash(tuple(encoded.input_ids[:first])) if first > 1 else 0)
            self._answers.append(trained.count(True) if first >= 0 else -1)
            if self._labelled:
                self._text_keys.append(key_of(values, self._judged))
                self._label_keys.append(hash(tuple(sorted(encoded.target or ()))))
            elif self._tagged:
                self._look_at_tags(number, values)
            elif self._extractive and extract_of(values, self._mapping).moved:
                self._moved.add(number)

    def shortened(self, number: int, encoded: Encoded, used: Encoded) -> None:
        """A good row that is longer than the maximum length: note it where that takes something from what is learned.

        A head that judges whole texts, and an encoder, read less of them; else it counts whether answers, texts or
        tags are lost, which questions without an end are not.
        """
        reads_less = self._task.head in ("sequence", "span", "seq2seq")
        if reads_less or _trained(encoded) > _trained(used):
            self._cut.add(number)

    def _look_for_special(self, number: int, values: dict[str, Any]) -> None:
        assert self._pattern is not None
        found: list[str] = []
        for text in _cells(values, self._texts):
            # Most texts have not even the character that nearly every special token begins with.
            if any(begin in text for begin in self._first_chars) and any(pair in text for pair in self._first_pairs):
                found += self._pattern.findall(text)
        if found:
            self._special.add(number)
            self._special_texts.update(found)

    def _look_at_tags(self, number: int, values: dict[str, Any]) -> None:
        tags = tagged(values, self._mapping)[1]
        if repaired(tags) != tags:
            self._broken_tags.add(number)

    def found(
        self,
        reasons: Mapping[str, int],
        bad: Iterable[tuple[int, str]],
        labels: Mapping[str, int],
        params: Any,
    ) -> tuple[Finding, ...]:
        """Everything, the worst first. `reasons`: how many rows cannot be used for each; `bad`: the first of them,
        by number; `labels`: how many rows have each."""
        found = [
            *_reasons(reasons, list(bad)),
            *self._duplicates(),
            *self._conflicts(),
            *self._labels(labels, params),
            *self._specials(),
            *self._tags(),
            *self._moved_answers(),
            *self._unseen_tools(),
            *self._lengths(),
            *self._same_prompts(),
        ]
        order: dict[str, int] = {"bad": 0, "warn": 1, "info": 2}
        return tuple(sorted(found, key=lambda finding: order[finding.severity]))

    def _duplicates(self) -> Iterator[Finding]:
        import numpy as np

        keys, numbers = _numpy(self._keys), _numpy(self._numbers)
        again = np.ones(len(keys), dtype=bool)
        again[np.unique(keys, return_index=True)[1]] = False
        if count := int(again.sum()):
            words = f"{_rows(count, 'repeats', 'repeat')} an earlier row word for word."
            mend = MendRef(name="drop_duplicates")
            yield Finding(
                kind="duplicates",
                severity="warn",
                words=words,
                count=count,
                rows=_first_rows(numbers, again),
                mend=mend,
            )

    def _conflicts(self) -> Iterator[Finding]:
        if not self._labelled or not self._text_keys:
            return
        import numpy as np

        texts, labels, numbers = _numpy(self._text_keys), _numpy(self._label_keys), _numpy(self._good_numbers)
        order = np.argsort(texts, kind="stable")
        starts = np.flatnonzero(np.r_[True, texts[order][1:] != texts[order][:-1]])
        least, most = (reduce.reduceat(labels[order], starts) for reduce in (np.minimum, np.maximum))
        torn = np.zeros(len(texts), dtype=bool)
        torn[order] = np.repeat(least != most, np.diff(np.r_[starts, len(texts)]))
        if count := int(torn.sum()):
            words = f"{_rows(count, 'has', 'have')} a text that stands elsewhere with another label."
            mend = MendRef(name="drop_conflicting")
            yield Finding(
                kind="conflicts", severity="warn", words=words, count=count, rows=_first_rows(numbers, torn), mend=mend
            )

    def _labels(self, labels: Mapping[str, int], params: Any) -> Iterator[Finding]:
        if not labels:
            return
        problems, notes = self._task.check_labels(params, dict(labels), len(self._good_numbers))
        for words in problems:
            yield Finding(kind="labels", severity="bad", words=words, count=0, rows=())
        for words in notes:
            yield Finding(kind="labels", severity="info", words=words, count=0, rows=())
        if self._labelled and (other := spellings(Counter(labels))):
            import numpy as np

            count = sum(labels[label] for label in other)
            named = ", ".join(f"{label!r} for {usual!r}" for label, usual in list(other.items())[:3])
            named += " ..." if len(other) > 3 else ""
            words = f"{_rows(count, 'spells', 'spell')} a label in an unusual way ({named})."
            where = np.isin(_numpy(self._label_keys), [hash((label,)) for label in other])
            rows = _first_rows(_numpy(self._good_numbers), where)
            mend = MendRef(name="unify_labels")
            yield Finding(kind="label spellings", severity="warn", words=words, count=count, rows=rows, mend=mend)

    def _specials(self) -> Iterator[Finding]:
        if not self._special.count:
            return
        seen = [text for text, _ in self._special_texts.most_common()]
        words = (
            f"{_rows(self._special.count, 'holds', 'hold')} text that this model takes for special tokens "
            f"({', '.join(seen[:3])}{' ...' if len(seen) > 3 else ''}): it would end turns in mid-sentence."
        )
        mend = None
        if self._mapping.shape not in (Shape.TAGGED, Shape.EXTRACTIVE):
            mend = MendRef(name="cut_special", params={"tokens": seen[:1_000]})
        yield self._special.finding("special tokens", "warn", words, mend)

    def _tags(self) -> Iterator[Finding]:
        if count := self._broken_tags.count:
            words = f"{_rows(count, 'has', 'have')} a tag that continues an entity which nothing began (I- without B-)."
            yield self._broken_tags.finding("tags", "warn", words, MendRef(name="repair_tags"))

    def _moved_answers(self) -> Iterator[Finding]:
        if count := self._moved.count:
            words = (
                f"{_rows(count, 'says', 'say')} that an answer starts where something else stands (answer_start): the "
                "place closest to it at which the answer does stand is used."
            )
            yield self._moved.finding("answer places", "info", words, None)

    def _unseen_tools(self) -> Iterator[Finding]:
        if count := self._toolless.count:
            words = (
                f"{_rows(count, 'lists', 'list')} tools, for which the model's chat template has no place: the model "
                "is not shown them. The Chat template ChatML has one."
            )
            yield self._toolless.finding("tools", "info", words, None)

    def _lengths(self) -> Iterator[Finding]:
        if count := self._cut.count:
            words = f"{_rows(count, 'is', 'are')} longer than {self._length:,} tokens: {self._loss()} "
            yield self._cut.finding("cut answers", "warn", f"{words}Raise Maximum length to keep it.", None)
        import numpy as np

        answers, numbers = _numpy(self._answers), _numpy(self._good_numbers)
        if len(answers) < 20 or self._task.shapes == (Shape.TEXT,) or answers.max() < 0:
            return
        usual = float(np.median(answers))
        short = (answers <= _SHORT_ANSWER) & (answers >= 0)
        long = answers > max(_LONG_ANSWER * usual, 256)
        for kind, where, words in (
            ("short answers", short, "an answer of a single token."),
            (
                "long answers",
                long,
                f"an answer more than {_LONG_ANSWER} times as long as is usual here ({usual:,.0f} tokens).",
            ),
        ):
            count = int(where.sum())
            if 0 < count < _RARE * len(answers) and usual > 2 * _SHORT_ANSWER:
                said = f"{_rows(count, 'has', 'have')} {words}"
                yield Finding(kind=kind, severity="info", words=said, count=count, rows=_first_rows(numbers, where))

    def _loss(self) -> str:
        """What is lost of a row that is too long, by what the task learns of it."""
        match self._task.head:
            case "token":
                return "words beyond that are not read, and their tags not learned."
            case "sequence":
                return "the text is read up to there, and its end does not count."
            case "span":
                return "the passage is read up to there, and its end does not count."
            case "seq2seq":
                return "the end of the source, or of what it becomes, is lost."
        if self._task.shapes == (Shape.TEXT,):
            return "the end of the text is not learned."
        return "the end of an answer is not learned."

    def _same_prompts(self) -> Iterator[Finding]:
        import numpy as np

        prompts, numbers = _numpy(self._prompts), _numpy(self._good_numbers)
        _, place, counts = np.unique(prompts, return_inverse=True, return_counts=True)
        shared = (counts[place] > 1) & (prompts != 0)
        count = int(shared.sum())
        if not count or self._labelled or self._tagged:
            return
        apart = (
            "They stay on one side when rows are kept aside to validate with, so that the validation loss does not "
            "praise memory."
            if counts[place][shared].max() <= len(prompts) / 2
            else "One prompt has most of the rows: they cannot all stay on one side when rows are kept aside to "
            "validate with, so the validation loss may praise memory."
        )
        words = f"{_rows(count, 'has', 'have')} a prompt that another row has too. {apart}"
        yield Finding(kind="same prompts", severity="info", words=words, count=count, rows=_first_rows(numbers, shared))


class _Listed:
    """How many rows, and the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[int] = []

    def add(self, number: int) -> None:
        self.count += 1
        if len(self.rows) < ROWS_LISTED:
            self.rows.append(number)

    def finding(self, kind: str, severity: Severity, words: str, mend: MendRef | None) -> Finding:
        return Finding(kind=kind, severity=severity, words=words, count=self.count, rows=tuple(self.rows), mend=mend)


def reason_kind(reason: str) -> str:
    """A reason without what is in brackets at its end: the same for every row of its kind. Those in a column's name,
    which stands in quotes, are no such brackets."""
    found = _NAMES_COLUMN.match(reason)
    column = found.group() if found else ""
    return column + reason.removeprefix(column).partition(" (")[0]


def _reasons(reasons: Mapping[str, int], bad: list[tuple[int, str]]) -> Iterator[Finding]:
    """What puts the rows right that cannot be used, or leaves them out."""
    by_mend: Counter[str] = Counter()
    for reason, count in reasons.items():
        if not reason.startswith(_NOT_THE_DATA):
            by_mend[_MENDED_REASONS.get(reason, "drop_bad")] += count
    bad_rows = sum(reasons.values())
    for name, count in by_mend.items():
        rows = tuple(
            number
            for number, reason in bad
            if not reason.startswith(_NOT_THE_DATA) and _MENDED_REASONS.get(reason_kind(reason), "drop_bad") == name
        )
        one, many, words = _WORDS[name]
        said = f"{_rows(count, one, many)} {words}"
        if name == "drop_bad" and count < bad_rows:
            them = "it" if count == 1 else "them"
            said = f"{count:,} of the {bad_rows:,} rows that cannot be used: leaving {them} out helps; below is why."
        yield Finding(
            kind="bad rows", severity="bad", words=said, count=count, rows=rows[:ROWS_LISTED], mend=MendRef(name=name)
        )


def _rows(count: int, one: str, many: str) -> str:
    return f"1 row {one}" if count == 1 else f"{count:,} rows {many}"


def _trained(encoded: Encoded) -> int:
    return sum(text.trained.count(True) for text in encoded.texts)


def _first(trained: Sequence[bool]) -> int:
    """Where the first trained token stands; -1 where none is."""
    try:
        return trained.index(True)
    except ValueError:
        return -1


def _cells(values: dict[str, Any], columns: Sequence[str]) -> Iterator[str]:
    for column in columns:
        value = values.get(column)
        if value is None:
            value = value_at(values, column)
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, str):
                    yield item
                elif isinstance(item, dict):
                    for key in CONTENT_KEYS:
                        if isinstance(item.get(key), str):
                            yield item[key]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], re.Pattern[str] | None]:
    """The texts that the tokenizer turns into special tokens: how they begin, and a pattern for all of them."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {str(token) for token in added if token.special} | set(map(str, tokenizer.all_special_tokens))
    texts = {text for text in texts if len(text) > 2 and not text.isalnum()}
    if not texts:
        return [], None
    longest_first = sorted(texts, key=len, reverse=True)
    return sorted({text[:2] for text in texts}), re.compile("|".join(map(re.escape, longest_first)))


def _numpy(values: array[int]) -> np.ndarray:
    import numpy as np

    return (
        np.frombuffer(values, dtype=np.int64 if values.typecode == "q" else np.int32)
        if values
        else np.zeros(0, np.int64)
    )


def _first_rows(numbers: np.ndarray, where: np.ndarray) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers[where][:ROWS_LISTED])
