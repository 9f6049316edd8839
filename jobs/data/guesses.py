"""One guess a shape: whether the columns' names and values look like it, and how surely. jobs.data.detect chooses.

A guess looks at a sample of rows only, and never at whether they are good: that is counted afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.data.columns import ABSENT, LANGUAGES, SPELLINGS, Mapping, Shape, column_paths, plain_name, value_at
from jobs.data.conversation import CONTENT_KEYS, ROLE_KEYS, turn_items
from jobs.data.numbers import decimal_of, is_number, number, unit_of
from jobs.data.preferences import thumb
from jobs.errors import RowProblem

CLEAR, LIKELY, VAGUE = 3, 2, 1
ABOUT = ("id", "url", "source", "title", "date", "author", "meta", "timestamp", "lang", "language", "category", "name")
_SEPARATORS = ("|", ";", ",")
_LABEL_CHARS = 60
_NEARLY_ALL = 0.9  # of the cells: a column of numbers
_FEW_NUMBERS = 5  # cells that alone prove nothing of a column without a telling name


@dataclass(frozen=True)
class Guess:
    mapping: Mapping
    said: str  # what was seen, a sentence without its full stop
    strength: int


class Look:
    """A sample of a dataset's rows, and what its columns hold."""

    def __init__(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        self.rows = rows
        self.columns = columns

    def named(self, kind: str, without: Iterable[str | None] = ()) -> str | None:
        """The column whose name is the earliest of the kind's spellings."""
        left_out = set(without)
        by_name = {plain_name(column): column for column in reversed(self.columns) if column not in left_out}
        return next((by_name[name] for name in SPELLINGS[kind] if name in by_name), None)

    def values(self, column: str) -> list[Any]:
        """What the rows have there, without nulls and blanks."""
        found = (value_at(row, column) for row in self.rows)
        return [value for value in found if value is not ABSENT and value is not None and value != ""]

    def share(self, column: str, test: Callable[[Any], bool]) -> float:
        """The share of the rows whose value there passes."""
        return sum(map(test, self.values(column))) / len(self.rows) if self.rows else 0.0

    @cached_property
    def texts(self) -> list[str]:
        """The columns that hold text in at least half of the rows."""
        return [column for column in self.columns if self.share(column, is_text) >= 0.5]

    @cached_property
    def written(self) -> list[str]:
        """As `texts`, and those that hold numbers: an answer may be one."""
        return [column for column in self.columns if self.share(column, _is_written) >= 0.5]

    @cached_property
    def paths(self) -> list[str]:
        return [path for path in column_paths(self.rows, self.columns) if path not in self.columns]


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not is_number(value)


def _is_written(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and bool(value.strip()))


def guesses(look: Look) -> Iterator[Guess]:
    """Every shape that the columns may be, the most special first."""
    for guess in (
        *(_tagged, _preference, _translation, _chat, _feedback, _extractive, _summary, _source, _pair),
        *(_scored, _labelled, _text, _unnamed),
    ):
        if found := guess(look):
            yield found


def _tagged(look: Look) -> Guess | None:
    tokens = look.named("tokens")
    tags = look.named("tags", [tokens])
    if tokens and tags:
        alike = sum(_as_many(row.get(tokens), row.get(tags)) for row in look.rows)
        if alike >= 0.5 * len(look.rows):
            mapping = Mapping(shape=Shape.TAGGED, columns={"tokens": tokens, "tags": tags})
            return Guess(mapping, f'Tagged words: "{tags}" has a tag for each word in "{tokens}"', CLEAR)
    return None


def _as_many(words: Any, tags: Any) -> bool:
    if isinstance(words, str) and isinstance(tags, str):
        return len(words.split()) == len(tags.split()) > 0
    return isinstance(words, list) and isinstance(tags, list) and len(words) == len(tags) > 0


def _preference(look: Look) -> Guess | None:
    chosen, rejected = look.named("chosen"), look.named("rejected")
    if not chosen or not rejected:
        return None
    roles = {"chosen": chosen, "rejected": rejected}
    prompt = look.named("instruction", roles.values()) or look.named("prompt", roles.values())
    where = f' for each prompt in "{prompt}"' if prompt else ", each with its prompt"
    if prompt:
        roles = {"prompt": prompt, **roles}
    if system := look.named("system"):
        roles["system"] = system
    said = f'Preferences: "{chosen}" holds the better and "{rejected}" the worse answer{where}'
    return Guess(Mapping(shape=Shape.PREFERENCE, columns=roles), said, CLEAR)


def _translation(look: Look) -> Guess | None:
    inside = [path for path in look.paths if path.rpartition(".")[2].lower() in LANGUAGES]
    spoken = [column for column in look.columns if plain_name(column).split(" ")[0] in LANGUAGES]
    for named in (inside, [column for column in spoken if column in look.texts]):
        if len(named) >= 2:
            mapping = Mapping(shape=Shape.REWRITE, columns={"source": named[0], "target": named[1]})
            sure = CLEAR if len(named) == 2 else LIKELY
            return Guess(mapping, f'Translations: "{named[0]}" is turned into "{named[1]}"', sure)
    return None


def _chat(look: Look) -> Guess | None:
    known = SPELLINGS["conversation"]
    found: list[tuple[float, int, str, Shape]] = []
    for column in look.columns:
        kinds = [kind for row in look.rows if (kind := _turn_kind(row, column))]
        if kinds and len(kinds) >= 0.5 * len(look.rows):
            name = plain_name(column)
            rank = known.index(name) if name in known else len(known)
            found.append((-round(len(kinds) / len(look.rows), 1), rank, column, max(set(kinds), key=kinds.count)))
    if not found:
        return None
    _, _, column, shape = min(found)
    roles = {"messages" if shape is Shape.MESSAGES else "conversations": column}
    for role in ("system", "tools"):
        if other := look.named(role, [column]):
            roles[role] = other
    mapping = Mapping(shape=shape, columns=roles)
    what = "conversations with roles" if shape is Shape.MESSAGES else "conversations in ShareGPT form (from, value)"
    if len(found) > 1:
        others = ", ".join(f'"{name}"' for _, _, name, _ in found if name != column)
        return Guess(
            mapping, f'Chat: the column "{column}" holds {what}, and so does {others}; the first is used', VAGUE
        )
    return Guess(mapping, f'Chat: the column "{column}" holds {what}', CLEAR)


def _turn_kind(row: dict[str, Any], column: str) -> Shape | None:
    value = row.get(column)
    if not isinstance(value, list | dict) and not (isinstance(value, str) and value.lstrip()[:1] in ("[", "{")):
        return None
    try:
        items = turn_items(row, column)
    except RowProblem:
        return None
    if not all(isinstance(item, dict) for item in items):
        return None
    role = next((key for key in ROLE_KEYS if key in items[0]), None)
    content = next((key for key in (*CONTENT_KEYS, "tool_calls") if key in items[0]), None)
    if role is None or content is None:
        return None
    return Shape.SHAREGPT if role == "from" else Shape.MESSAGES


def _feedback(look: Look) -> Guess | None:
    label = look.named("thumb")
    completion = look.named("completion", [label])
    prompt = look.named("instruction", [label, completion]) or look.named("prompt", [label, completion])
    if not (label and completion and prompt):
        return None
    if look.share(label, lambda value: _is_thumb(value, label)) < 0.9:
        return None
    roles = {"prompt": prompt, "completion": completion, "label": label}
    if system := look.named("system"):
        roles["system"] = system
    said = f'Thumbs: "{label}" says whether "{completion}" is a good answer to "{prompt}"'
    return Guess(Mapping(shape=Shape.FEEDBACK, columns=roles), said, CLEAR)


def _is_thumb(value: Any, column: str) -> bool:
    try:
        thumb({column: value}, column)
    except RowProblem:
        return False
    return True


def _extractive(look: Look) -> Guess | None:
    question = look.named("asked")
    context = look.named("passage", [question])
    answers = look.named("answers", [question, context])
    if not (question and context and answers):
        return None
    mapping = Mapping(shape=Shape.EXTRACTIVE, columns={"question": question, "context": context, "answers": answers})
    said = f'Answers in passages: "{answers}" stands in "{context}" and answers "{question}"'
    if look.share(answers, lambda value: isinstance(value, dict) and "text" in value) >= 0.5:
        return Guess(mapping, said, CLEAR)
    inside = sum(_stands_in(row.get(answers), row.get(context)) for row in look.rows)
    return Guess(mapping, said, CLEAR) if inside >= 0.8 * len(look.rows) else None


def _stands_in(answer: Any, context: Any) -> bool:
    return isinstance(answer, str) and isinstance(context, str) and bool(answer.strip()) and answer in context


def _summary(look: Look) -> Guess | None:
    return _two(look, "long", "short", "Summaries")


def _source(look: Look) -> Guess | None:
    return _two(look, "source", "target", "Rewriting")


def _two(look: Look, first: str, second: str, what: str) -> Guess | None:
    target = look.named(second)
    source = look.named(first, [target])
    if not source or not target or source not in look.texts or target not in look.texts or look.named("instruction"):
        return None
    mapping = Mapping(shape=Shape.REWRITE, columns={"source": source, "target": target})
    return Guess(mapping, f'{what}: "{source}" is turned into "{target}"', CLEAR)


def _pair(look: Look) -> Guess | None:
    written = Look(look.rows, look.written)
    completion, instruction = written.named("completion"), written.named("instruction")
    if completion is None:
        return None
    system = look.named("system", [completion, instruction])
    extra = {"system": system} if system else {}
    prompt = instruction or written.named("prompt", [completion])
    if prompt is None:
        return None
    context = look.named("context", [completion, prompt])
    if instruction or context:
        roles = {"instruction": prompt, "output": completion, **({"input": context} if context else {}), **extra}
        below = f' with "{context}" below it' if context else ""
        what = "Instructions" if instruction else "Questions"
        said = f'{what}: "{prompt}"{below} is asked and "{completion}" is the answer'
        return Guess(Mapping(shape=Shape.INSTRUCTION, columns=roles), said, CLEAR)
    said = f'Questions and answers: "{prompt}" is asked and "{completion}" is the answer'
    roles = {"prompt": prompt, "completion": completion, **extra}
    return Guess(Mapping(shape=Shape.PROMPT, columns=roles), said, CLEAR)


def _judged(look: Look, without: str) -> dict[str, str] | None:
    """The text that a label or a number is about, and the one it is judged with."""
    first, second = look.named("first text", [without]), look.named("second text", [without])
    if first in look.texts and second in look.texts:
        return {"text": str(first), "text_pair": str(second)}
    named = look.named("judged", [without])
    left = [column for column in look.texts if column != without and plain_name(column) not in ABOUT]
    text = named if named in look.texts else max(left, key=lambda column: _mean_length(look, column), default=None)
    return {"text": text} if text else None


def _scored(look: Look) -> Guess | None:
    by_name = look.named("score")
    score = by_name or look.named("label")
    unnamed = None if score else _only_numbers(look)
    score = score or unnamed
    if not score or not (texts := _judged(look, score)):
        return None
    values = look.values(score)
    unit = unit_of(values)
    decimal = decimal_of(values, unit)
    numbers = [found for value in values if (found := number(value, decimal, unit)) is not None]
    if len(numbers) < 0.5 * len(look.rows):
        return None
    whole = all(found.is_integer() for found in numbers)
    if whole and not (by_name or unit or unnamed):
        return None  # numbers for names
    if decimal and not (by_name or unnamed) and separator(values):
        return None  # numbers for names, several in a cell
    mapping = Mapping(shape=Shape.SCORED, columns={**texts, "score": score}, decimal=decimal, unit=unit)
    said = f'Scores: "{score}" is a number for {_quoted(texts)}'
    if decimal:
        shown = max((str(value).strip() for value in values if "," in str(value)), key=len)
        said += f' with {"a decimal comma" if decimal == "," else "commas between thousands"} ("{shown[:20]}")'
    if unit:
        shown = next(str(value).strip() for value in values if isinstance(value, str) and unit_of([value]) == unit)
        said += f', without the "{unit}" that stands around it ("{shown[:20]}")'
    strength = (VAGUE if unnamed else LIKELY) if whole else LIKELY if unnamed else CLEAR
    return Guess(mapping, said, strength)


def _only_numbers(look: Look) -> str | None:
    """The one column, whatever its name, of which nearly all cells are numbers; not one that counts the rows."""
    found = []
    for column in look.columns:
        values = look.values(column)
        unit = unit_of(values)
        if plain_name(column) in ABOUT or len(values) < max(_FEW_NUMBERS, 0.5 * len(look.rows)):
            continue
        if sum(is_number(value, unit) for value in values) < _NEARLY_ALL * len(values):
            continue
        decimal = decimal_of(values, unit)
        numbers = [each for value in values if (each := number(value, decimal, unit)) is not None]
        rises = all(before < after for before, after in itertools.pairwise(numbers))
        if len(set(numbers)) > 1 and not (rises and all(each.is_integer() for each in numbers)):
            found.append(column)
    return found[0] if len(found) == 1 else None


def _labelled(look: Look) -> Guess | None:
    strong = look.named("label")
    for label, least in ((strong, CLEAR), (look.named("weak label"), LIKELY), (_few_values(look), LIKELY)):
        if not label or look.share(label, _is_label) < 0.5 or not (texts := _judged(look, label)):
            continue
        values = look.values(label)
        if any((found := number(value)) is not None and not found.is_integer() for value in values):
            continue
        parted_by = separator(values)
        listed = parted_by or any(isinstance(value, list) for value in values)
        different = len({str(value) for value in values})
        if label != strong and not listed and different > max(2, 0.5 * len(values)):
            continue
        mapping = Mapping(shape=Shape.LABELLED, columns={**texts, "label": label}, separator=parted_by)
        how = f', several in a cell, parted by "{parted_by}"' if parted_by else ", several a text" if listed else ""
        return Guess(mapping, f'Labels: "{label}" names what {_quoted(texts)} is{how}', least)
    return None


def _few_values(look: Look) -> str | None:
    """A column of few short words beside a column of long texts, whatever its name."""
    for column in look.columns:
        values = look.values(column)
        if len(values) >= 20 and plain_name(column) not in ABOUT and look.share(column, _is_label) >= 0.9:
            different = len({str(value) for value in values})
            if 2 <= different <= min(20, 0.2 * len(values)) and not all(is_number(value) for value in values):
                return column
    return None


def _is_label(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str | int) for item in value)
    return isinstance(value, bool | int | float) or (isinstance(value, str) and 0 < len(value.strip()) <= _LABEL_CHARS)


def separator(values: list[Any]) -> str:
    """What stands between several labels of one cell: the pieces are few, and stand alone in other cells."""
    cells = [value for value in values if isinstance(value, str)]
    for mark in _SEPARATORS:
        several = [cell for cell in cells if mark in cell]
        pieces = [piece.strip() for cell in several for piece in cell.split(mark)]
        if len(several) >= 2 and all(pieces) and max(map(len, pieces)) <= 30:
            alone = {cell.strip() for cell in cells if mark not in cell}
            if len(set(pieces)) <= 0.67 * len(pieces) or set(pieces) & alone:
                return mark
    return ""


def _quoted(texts: dict[str, str]) -> str:
    return " with ".join(f'"{column}"' for column in texts.values())


def _text(look: Look) -> Guess | None:
    if not look.texts:
        return None
    named = Look(look.rows, look.texts).named("text")
    if named:
        others = [column for column in look.texts if column != named and plain_name(column) not in ABOUT]
        mapping = Mapping(shape=Shape.TEXT, columns={"text": named})
        strength = VAGUE if others else LIKELY if _scored(look) else CLEAR
        return Guess(mapping, f'Plain text in the column "{named}"', strength)
    column = look.texts[0]
    mapping = Mapping(shape=Shape.TEXT, columns={"text": column})
    if len(look.columns) == 1:
        said = (
            f'There is only one column, "{column}", so it can be trained as plain text; '
            "a chat needs a question and an answer column"
        )
        return Guess(mapping, said, VAGUE)
    if len(look.texts) == 1:
        return Guess(mapping, f'Only the column "{column}" holds text. The guess is plain text', VAGUE)
    return None


def _unnamed(look: Look) -> Guess | None:
    if len(look.texts) < 2:
        return None
    longest = sorted(look.texts, key=lambda column: -_mean_length(look, column))[:2]
    prompt, completion = (column for column in look.texts if column in longest)
    mapping = Mapping(shape=Shape.PROMPT, columns={"prompt": prompt, "completion": completion})
    said = f'The column names say little. The guess is that "{prompt}" is asked and "{completion}" is the answer'
    return Guess(mapping, said, VAGUE)


def _mean_length(look: Look, column: str) -> float:
    return sum(len(str(row.get(column) or "")) for row in look.rows) / max(1, len(look.rows))
