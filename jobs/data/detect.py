"""What a dataset's shape is, found out by looking at a sample of its rows. Never asks; says how sure it is."""

from __future__ import annotations

from typing import Any

from jobs.data.columns import ROLES, SPELLINGS, Mapping, Shape, plain_name
from jobs.data.conversation import CONTENT_KEYS, ROLE_KEYS, conversation, text_of, turn_items
from jobs.errors import RowProblem
from jobs.frozen import Frozen

SURE_SHARE = 0.5  # of the sampled rows have to fit; the rest are bad rows, which the check of the file names
WHOLE_TEXT = ("text", "markdown")  # formats whose rows are texts, with no columns to ask about
_ABOUT = ("id", "url", "source", "title", "date", "author", "meta", "timestamp", "lang", "language", "category", "name")


class Detection(Frozen):
    mapping: Mapping | None  # None only where no column holds text
    text: str  # one sentence for the person
    sure: bool


def detect(rows: list[dict[str, Any]], columns: list[str], file_format: str) -> Detection:
    """The best mapping for the sampled rows, and what was seen."""
    mapping, said, confident = _candidate(rows, columns, file_format)
    if mapping is None:
        return Detection(mapping=None, text=said, sure=False)
    fits = sum(_fits(row, mapping) for row in rows)
    counted = f"{fits} of {len(rows)} sampled rows fit."
    sure = confident and bool(rows) and fits >= SURE_SHARE * len(rows)
    return Detection(mapping=mapping, text=f"{said}; {counted}", sure=sure)


def columns_for(shape: Shape, columns: list[str], rows: list[dict[str, Any]]) -> dict[str, str]:
    """A guess at the column of each role of a shape: its usual spellings, else the first free column with text.

    Optional roles are filled by name only.
    """
    kinds = {"output": "completion", "input": "context", "messages": "conversation", "conversations": "conversation"}
    texts = [column for column in columns if _share_of_text(rows, column) >= 0.5]
    texts.sort(key=lambda column: plain_name(column) in _ABOUT)  # an id or a title is the last choice
    chosen: dict[str, str] = {}
    for role in ROLES[shape]:
        free = [column for column in columns if column not in chosen.values()]
        if named := _named(free, kinds.get(role, role)):
            chosen[role] = named
    for role, required in ROLES[shape].items():
        left = [column for column in texts if column not in chosen.values()]
        if required and role not in chosen and left and kinds.get(role) != "conversation":
            chosen[role] = left[0]
    return {role: chosen[role] for role in ROLES[shape] if role in chosen}


def _fits(row: dict[str, Any], mapping: Mapping) -> bool:
    try:
        if mapping.shape is Shape.TEXT:
            text_of(row, mapping.columns["text"])
        else:
            conversation(row, mapping)
    except RowProblem:
        return False
    return True


def _candidate(rows: list[dict[str, Any]], columns: list[str], file_format: str) -> tuple[Mapping | None, str, bool]:
    """(mapping, what was seen, whether the names and values leave no doubt)."""
    if file_format in WHOLE_TEXT:
        return Mapping(shape=Shape.TEXT, columns={"text": columns[0]}), "Plain text", True
    if chat := _chat(rows, columns):
        return chat
    text_columns = [column for column in columns if _share_of_text(rows, column) >= 0.5]
    if not text_columns:
        return None, "No column holds text or conversations. Choose what each column means.", False
    if pair := _pair([column for column in columns if _share_of_text(rows, column, numbers=True) >= 0.5], columns):
        return pair
    if named := _named(text_columns, "text"):
        others = [column for column in text_columns if column != named and plain_name(column) not in _ABOUT]
        said = f'Plain text in the column "{named}"'
        return Mapping(shape=Shape.TEXT, columns={"text": named}), said, not others
    if len(columns) == 1:
        said = (
            f'There is only one column, "{columns[0]}", so it can be trained as plain text; '
            "a chat needs a question and an answer column"
        )
        return Mapping(shape=Shape.TEXT, columns={"text": columns[0]}), said, False
    if len(text_columns) == 1:
        said = f'Only the column "{text_columns[0]}" holds text. The guess is plain text'
        return Mapping(shape=Shape.TEXT, columns={"text": text_columns[0]}), said, False
    longest = sorted(text_columns, key=lambda column: -_mean_length(rows, column))[:2]
    prompt, completion = (column for column in text_columns if column in longest)
    mapping = Mapping(shape=Shape.PROMPT, columns={"prompt": prompt, "completion": completion})
    said = f'The column names say little. The guess is that "{prompt}" is asked and "{completion}" is the answer'
    return mapping, said, False


def _chat(rows: list[dict[str, Any]], columns: list[str]) -> tuple[Mapping, str, bool] | None:
    known = SPELLINGS["conversation"]
    found: list[tuple[float, int, str, Shape]] = []
    for column in columns:
        kinds = [_turn_kind(row, column) for row in rows]
        shaped = [kind for kind in kinds if kind]
        if shaped and len(shaped) >= 0.5 * len(rows):
            name = plain_name(column)
            rank = known.index(name) if name in known else len(known)
            shape = max(set(shaped), key=shaped.count)
            found.append((-round(len(shaped) / len(rows), 1), rank, column, shape))
    if not found:
        return None
    _, _, column, shape = min(found)
    role = "messages" if shape is Shape.MESSAGES else "conversations"
    roles = {role: column}
    if system := _named(columns, "system"):
        roles["system"] = system
    mapping = Mapping(shape=shape, columns=roles)
    what = "conversations with roles" if shape is Shape.MESSAGES else "conversations in ShareGPT form (from, value)"
    if len(found) > 1:
        others = ", ".join(f'"{name}"' for _, _, name, _ in found if name != column)
        return mapping, f'Chat: the column "{column}" holds {what}, and so does {others}; the first is used', False
    return mapping, f'Chat: the column "{column}" holds {what}', True


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


def _pair(text_columns: list[str], columns: list[str]) -> tuple[Mapping, str, bool] | None:
    completion = _named(text_columns, "completion")
    instruction = _named(text_columns, "instruction")
    system = _named([c for c in columns if c not in (completion, instruction)], "system")
    extra = {"system": system} if system else {}
    doubt = ""
    if {"chosen", "rejected"} <= {plain_name(column) for column in columns}:
        doubt = ' (the better answers; those in "rejected" are not used)'
    if completion is None:
        return None
    if instruction:
        context = _named([c for c in columns if c not in (completion, instruction)], "context")
        roles = {"instruction": instruction, "output": completion, **({"input": context} if context else {}), **extra}
        middle = f', "{context}"' if context else ""
        return (
            Mapping(shape=Shape.INSTRUCTION, columns=roles),
            f'Instructions: "{instruction}"{middle} is asked and "{completion}" is the answer{doubt}',
            not doubt,
        )
    prompt = _named([column for column in text_columns if column != completion], "prompt")
    if prompt is None:
        return None
    context = _named([column for column in columns if column not in (completion, prompt)], "context")
    if context:
        return (
            Mapping(
                shape=Shape.INSTRUCTION,
                columns={"instruction": prompt, "input": context, "output": completion, **extra},
            ),
            f'Questions: "{prompt}" with "{context}" below it is asked and "{completion}" is the answer{doubt}',
            not doubt,
        )
    return (
        Mapping(shape=Shape.PROMPT, columns={"prompt": prompt, "completion": completion, **extra}),
        f'Questions and answers: "{prompt}" is asked and "{completion}" is the answer{doubt}',
        not doubt,
    )


def _named(columns: list[str], kind: str) -> str | None:
    """The column whose name is the earliest of the kind's spellings."""
    by_name = {plain_name(column): column for column in reversed(columns)}
    return next((by_name[name] for name in SPELLINGS[kind] if name in by_name), None)


def _share_of_text(rows: list[dict[str, Any]], column: str, numbers: bool = False) -> float:
    """Share of the rows with text in the column; an answer may be a number, a text to train on may not."""
    found = 0
    for row in rows:
        value = row.get(column)
        if isinstance(value, str):
            found += bool(value.strip()) and (numbers or not _is_number(value))
        else:
            found += numbers and isinstance(value, int | float)
    return found / len(rows) if rows else 0.0


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _mean_length(rows: list[dict[str, Any]], column: str) -> float:
    return sum(len(str(row.get(column) or "")) for row in rows) / max(1, len(rows))
