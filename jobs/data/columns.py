"""Which columns of a dataset mean what: the mapping that detection guesses and the person may mend."""

from __future__ import annotations

import re
from enum import StrEnum

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
    Shape.MESSAGES: {"messages": True, "system": False},
    Shape.SHAREGPT: {"conversations": True, "system": False},
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


class Mapping(Frozen):
    """A shape and the column that plays each of its roles."""

    shape: Shape
    columns: dict[str, str]  # role -> column name

    def missing(self) -> list[str]:
        """Required roles that have no column."""
        return [role for role, required in ROLES[self.shape].items() if required and not self.columns.get(role)]


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
}
KNOWN_NAMES = frozenset(name for names in SPELLINGS.values() for name in names)


def plain_name(column: str) -> str:
    """A column name for comparison: "UserMessage", "user_message" and "User message" are one."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", column)
    return re.sub(r"[\W_]+", " ", spaced).strip().lower()
