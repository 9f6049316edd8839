"""Chat: conversations, instructions, questions and answers; by default the answers alone are trained. Of pairs of
answers the better ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from jobs.data.columns import Mapping, Shape
from jobs.data.conversation import before_answer, conversation, tools
from jobs.data.preferences import pair_of
from jobs.data.rendering import Rendered, render_answers, render_everything
from jobs.data.templates import Templated, problem
from jobs.data.turns import Turn
from jobs.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Chat(Task):
    name = "chat"
    label = "Chat"
    help = "Teaches the model to answer as the assistant in your conversations does."
    order = 10
    packs = True
    shapes = (Shape.MESSAGES, Shape.SHAREGPT, Shape.INSTRUCTION, Shape.PROMPT, Shape.PREFERENCE, Shape.REWRITE)
    borrowed: ClassVar[tuple[Shape, ...]] = (Shape.PREFERENCE, Shape.REWRITE)

    class Params(Templated):
        train_on: Literal["assistant answers", "last answer", "everything"] = Field(
            "assistant answers",
            title="Train on",
            description="Which part of a conversation the model learns to say. The answers are nearly always right.",
        )

    def check_data(self, params: Any, mapping: Mapping, has_chat_template: bool) -> list[str]:
        return [
            *super().check_data(params, mapping, has_chat_template),
            *needs_template(params, has_chat_template),
        ]

    def render(
        self, row: dict[str, Any], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Params
    ) -> Rendered:
        turns, offered = _turns(row, mapping), tools(row, mapping)
        if params.train_on == "everything":
            return render_everything(tokenizer, turns, offered)
        return render_answers(tokenizer, turns, params.train_on == "last answer", offered)

    def prompt_messages(self, row: dict[str, Any], mapping: Mapping) -> list[dict[str, str]]:
        return before_answer(_turns(row, mapping))


def needs_template(params: Any, has_chat_template: bool) -> list[str]:
    """The problem that a model without a chat template has with conversations, until one is chosen."""
    without = problem(params, has_chat_template)
    return [without] if without else []


def _turns(row: dict[str, Any], mapping: Mapping) -> list[Turn]:
    return pair_of(row, mapping).chosen if mapping.shape is Shape.PREFERENCE else conversation(row, mapping)
