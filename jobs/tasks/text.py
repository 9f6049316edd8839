"""Plain text: every token is trained, with the model's end token behind each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.data.columns import Mapping, Shape
from jobs.data.conversation import text_of
from jobs.data.rendering import Rendered
from jobs.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPT_WORDS = 8


class Text(Task):
    name = "text"
    label = "Plain text"
    help = "Teaches the model to write on in the style and words of your texts. Works without a chat template."
    order = 20
    packs = True
    shapes = (Shape.TEXT,)
    adds_special_tokens = True  # a beginning token, where the model was trained with one

    def render(
        self, row: dict[str, Any], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> Rendered:
        text = text_of(row, mapping.columns["text"]) + (tokenizer.eos_token or "")
        return Rendered(text, ((0, len(text)),))

    def prompt_messages(self, row: dict[str, Any], mapping: Mapping) -> list[dict[str, str]]:
        """The text's first words, to be written on."""
        words = text_of(row, mapping.columns["text"]).split()
        return [{"role": "user", "content": " ".join(words[:_PROMPT_WORDS])}]
