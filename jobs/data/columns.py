"""Which columns of a dataset mean what: the mapping that detection guesses and the person may mend."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from jobs.data.numbers import Decimal
from jobs.frozen import Frozen


class Shape(StrEnum):
    """The forms a dataset comes in."""

    MESSAGES = "messages"  # a column with [{"role", "content"}, ...]
    SHAREGPT = "sharegpt"  # a column with [{"from", "value"}, ...]
    INSTRUCTION = "instruction"  # instruction, optional input, output
    PROMPT = "prompt"  # prompt, completion, optional system
    PREFERENCE = "preference"  # a better and a worse answer, with a prompt or as whole conversations
    FEEDBACK = "feedback"  # an answer and a thumb up or down
    LABELLED = "labelled"  # text with a label, or a list of them
    SCORED = "scored"  # text with a number
    TAGGED = "tagged"  # words and a tag for each
    EXTRACTIVE = "extractive"  # a question, a passage, and the answer as it stands there
    REWRITE = "rewrite"  # a source text and what it is turned into: a translation, a summary
    TEXT = "text"  # one column of plain text


# The roles each shape asks for, and whether it can do without.
ROLES: dict[Shape, dict[str, bool]] = {
    Shape.MESSAGES: {"messages": True, "system": False, "tools": False},
    Shape.SHAREGPT: {"conversations": True, "system": False, "tools": False},
    Shape.INSTRUCTION: {"instruction": True, "input": False, "output": True, "system": False},
    Shape.PROMPT: {"prompt": True, "completion": True, "system": False},
    Shape.PREFERENCE: {"prompt": False, "chosen": True, "rejected": True, "system": False},
    Shape.FEEDBACK: {"prompt": True, "completion": True, "label": True, "system": False},
    Shape.LABELLED: {"text": True, "text_pair": False, "label": True},
    Shape.SCORED: {"text": True, "text_pair": False, "score": True},
    Shape.TAGGED: {"tokens": True, "tags": True},
    Shape.EXTRACTIVE: {"question": True, "context": True, "answers": True},
    Shape.REWRITE: {"source": True, "target": True},
    Shape.TEXT: {"text": True},
}


ABSENT: Any = object()


class Mapping(Frozen):
    """A shape and the column that plays each of its roles."""

    shape: Shape
    columns: dict[str, str]  # role -> column name, or a path into a column that holds objects: "translation.de"
    separator: str = ""  # stands between the labels of one cell, where a cell holds several
    decimal: Decimal = ""  # how a score is written
    unit: str = ""  # what may stand around a score, as jobs.data.numbers names it

    def missing(self) -> list[str]:
        """Required roles that have no column."""
        return [role for role, required in ROLES[self.shape].items() if required and not self.columns.get(role)]


# What a row of each shape is, as the page words it.
SHAPE_LABELS: dict[Shape, str] = {
    Shape.MESSAGES: "Chat: a column of messages",
    Shape.SHAREGPT: "Chat in ShareGPT form",
    Shape.INSTRUCTION: "Instruction and answer",
    Shape.PROMPT: "Prompt and completion",
    Shape.PREFERENCE: "A better and a worse answer",
    Shape.FEEDBACK: "An answer and a thumb up or down",
    Shape.LABELLED: "Text and its label",
    Shape.SCORED: "Text and a number",
    Shape.TAGGED: "Words and a tag for each",
    Shape.EXTRACTIVE: "Question, passage and the answer in it",
    Shape.REWRITE: "Text and what it becomes: translation, summary",
    Shape.TEXT: "Plain text",
}

# How people name columns, by what they hold; compared through `plain_name`.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "conversation": ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns", "chosen"),
    "instruction": ("instruction", "instructions"),
    "prompt": (
        *("prompt", "question", "query", "user", "human", "input", "request", "problem", "source", "customer"),
        *("q", "user message", "user prompt", "user input", "user query", "input text", "question text", "prompt text"),
        *("message", "post", "utterance", "client", "patient", "context", "article", "document", "text"),
    ),
    "context": ("input", "context", "passage", "background", "document", "knowledge"),
    "completion": (
        *("completion", "response", "answer", "reply", "output", "assistant", "bot", "gpt", "model", "target"),
        *("a", "answers", "responses", "solution", "chosen", "agent", "comment", "doctor", "summary", "highlights"),
        *("assistant message", "model response", "assistant response", "bot response", "output text", "answer text"),
        *("ideal answer", "expected output", "gold answer", "final answer", "response text", "ground truth"),
    ),
    "system": ("system", "system prompt", "system message", "system instruction", "persona"),
    "text": ("text", "content", "document", "body", "story", "article", "passage", "paragraph", "sentence", "code"),
    "tools": ("tools", "functions", "available tools"),
    "chosen": (
        *("chosen", "chosen response", "response chosen", "accepted", "preferred", "better", "winner", "win"),
        *("chosen answer", "preferred response", "accepted answer", "better answer", "positive"),
    ),
    "rejected": (
        *("rejected", "rejected response", "response rejected", "dispreferred", "worse", "loser", "lose"),
        *("rejected answer", "dispreferred response", "worse answer", "negative"),
    ),
    "thumb": (
        "label",
        "feedback",
        "thumb",
        "thumbs",
        "thumbs up",
        "liked",
        "like",
        "good",
        "desirable",
        "vote",
        "rating",
    ),
    "label": (
        *(
            "label text",
            "label",
            "labels",
            "class",
            "sentiment",
            "intent",
            "emotion",
            "emotions",
            "label name",
            "classes",
        ),
        *("target", "is spam", "toxic", "stance", "gold label"),
    ),
    "weak label": (
        "category",
        "categories",
        "topic",
        "topics",
        "type",
        "genre",
        "genres",
        "tag",
        "tags",
        "kind",
        "group",
    ),
    "judged": (
        *("text", "sentence", "review", "review text", "comment", "tweet", "message", "content", "question", "title"),
        *("headline", "utterance", "post", "email", "document", "body", "description", "query", "input", "abstract"),
    ),
    "first text": ("premise", "sentence1", "sentence 1", "text1", "text 1", "question1", "question 1", "s1", "query"),
    "second text": (
        *("hypothesis", "sentence2", "sentence 2", "text2", "text 2", "question2", "question 2", "s2", "sentence"),
        *("text pair", "passage", "answer"),
    ),
    "score": (
        *("score", "similarity", "similarity score", "rating", "stars", "grade", "value", "quality", "points", "price"),
        *("relevance", "strength", "intensity", "valence", "preis", "prix", "precio", "prezzo", "prijs"),
        *("bewertung", "wertung", "punkte", "sterne", "note", "nota", "voto", "puntuación", "valoración", "cijfer"),
    ),
    "tokens": ("tokens", "words", "token"),
    "tags": ("ner tags", "tags", "pos tags", "bio tags", "chunk tags", "labels", "ner", "token labels", "label", "tag"),
    "asked": ("question", "query", "questions"),
    "passage": ("context", "passage", "paragraph", "document", "article", "background", "text"),
    "answers": ("answers", "answer", "answer text", "span"),
    "long": ("document", "article", "dialogue", "dialog", "text", "body", "content", "report", "source", "transcript"),
    "short": ("summary", "highlights", "abstract", "tldr", "tl dr", "summaries", "headline", "short"),
    "source": ("source", "src", "source text", "original", "input text", "from"),
    "target": ("target", "tgt", "target text", "translation", "translated", "rewritten", "output text", "to"),
}
LANGUAGES = frozenset(
    (
        *("english", "german", "french", "spanish", "italian", "portuguese", "dutch", "polish", "russian", "chinese"),
        *("japanese", "korean", "arabic", "hindi", "turkish", "swedish", "danish", "norwegian", "finnish", "greek"),
        *("czech", "hungarian", "romanian", "ukrainian", "vietnamese", "thai", "indonesian", "hebrew", "persian"),
        *("latin", "catalan", "swahili", "deutsch", "francais", "espanol", "bulgarian", "croatian", "serbian"),
        *("en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "zh", "ja", "ko", "ar", "hi", "tr", "sv", "da", "no"),
        *("nb", "fi", "el", "cs", "hu", "ro", "uk", "vi", "th", "he", "fa", "la", "ca", "sw", "bg", "hr", "sr"),
        *("et", "lv", "lt", "sk", "sl", "ga", "cy", "eu", "gl", "is", "bn", "ur", "ta", "te", "af", "ms", "eng", "deu"),
        *("fra", "spa", "ita", "por", "nld", "pol", "rus", "zho", "jpn", "kor", "ara"),
    )
)
# Words that name columns, and stand in cells as often.
_VALUES_TOO = frozenset(
    (
        *(
            "positive",
            "negative",
            "good",
            "better",
            "worse",
            "winner",
            "loser",
            "win",
            "lose",
            "from",
            "to",
            "short",
            "like",
        ),
        *("liked", "desirable", "neutral", "original", "value", "kind", "group", "type", "price", "points"),
        *("note", "nota", "voto"),
    )
)
KNOWN_NAMES = frozenset(name for names in SPELLINGS.values() for name in names) - _VALUES_TOO


_MOST_PATHS = 50  # into one column


def plain_name(column: str) -> str:
    """A column name for comparison: "UserMessage", "user_message" and "User message" are one."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", column)
    return re.sub(r"[\W_]+", " ", spaced).strip().lower()


def value_at(row: dict[str, Any], column: str) -> Any:
    """What the row has in a column, or at a path into one ("translation.de"); ABSENT where it has nothing there."""
    if column in row or "." not in column:
        return row.get(column, ABSENT)
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            return ABSENT
        value = value[part]
    return value


def with_value(row: dict[str, Any], column: str, value: Any) -> dict[str, Any]:
    """The row with another value in a column, or at a path into one; the given row is left as it is."""
    if column in row or "." not in column:
        return {**row, column: value}
    first, _, rest = column.partition(".")
    inner = row.get(first)
    return {**row, first: with_value(inner if isinstance(inner, dict) else {}, rest, value)}


def column_paths(rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> list[str]:
    """The columns, each that holds objects followed by the paths into it: what a role may be given."""
    inside: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, dict) and len(value) <= _MOST_PATHS:
                inside.setdefault(name, {}).update(dict.fromkeys(value))
    found: list[str] = []
    for name in columns:
        found.append(name)
        found += [f"{name}.{key}" for key in list(inside.get(name, ()))[:_MOST_PATHS]]
    return found
