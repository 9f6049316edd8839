"""Chat: conversations, instructions, questions and answers; by default the answers alone are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.data.columns import Mapping, Shape
from jobs.data.conversation import before_answer, conversation
from jobs.data.rendering import Rendered, render_answers, render_everything
from jobs.frozen import Frozen
from jobs.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Chat(Task):
    name = "chat"
    label = "Chat"
    help = "Teaches the model to answer as the assistant in your conversations does."
    order = 10
    shapes = (Shape.MESSAGES, Shape.SHAREGPT, Shape.INSTRUCTION, Shape.PROMPT)

    class Params(Frozen):
        train_on: Literal["assistant answers", "last answer", "everything"] = Field(
            "assistant answers",
            title="Train on",
            description="Which part of a conversation the model learns to say. The answers are nearly always right.",
        )

    def check_data(self, params: Any, mapping: Mapping, has_chat_template: bool) -> list[str]:
        problems = super().check_data(params, mapping, has_chat_template)
        if not has_chat_template:
            problems.append(
                "You chose the task Chat, but this base model has no chat template, so it does not know what a "
                "conversation looks like. Choose an instruct (chat) model, or map one column as plain text."
            )
        return problems

    def render(
        self, row: dict[str, Any], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Params
    ) -> Rendered:
        turns = conversation(row, mapping)
        if params.train_on == "everything":
            return render_everything(tokenizer, turns)
        return render_answers(tokenizer, turns, last_only=params.train_on == "last answer")

    def prompt_messages(self, row: dict[str, Any], mapping: Mapping) -> list[dict[str, str]]:
        return before_answer(conversation(row, mapping))
