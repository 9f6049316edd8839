"""From messages to tokens, rendered as training renders them, and back to text that grows while it streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.data.rendering import prompt_text
from jobs.errors import RowProblem, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]]) -> list[int]:
    """The conversation up to where the answer begins. Without a chat template: its text, to be continued.

    Raises UserError where the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        return tokenizer("\n".join(str(message["content"]) for message in messages))["input_ids"]  # type: ignore[return-value]
    try:
        text = prompt_text(tokenizer, list(messages))
    except RowProblem as problem:
        raise UserError(f"This conversation cannot be asked: {problem}.") from problem
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


class GrowingText:
    """Tokens in, text out, in pieces that never change afterwards.

    A character of several bytes (an emoji, an accent) may be spread over tokens: nothing is given out until it is
    whole. Decoding goes over the last few tokens only, together with those before them, because a tokenizer may write
    a token differently at the start of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context = 0  # tokens before this one no longer matter
        self._said = 0  # tokens before this one have been given out

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._tokens.append(token)
        return self._take(hold=True)

    def rest(self) -> str:
        """What was held back, at the end. A character that was cut off there is dropped: half of it says nothing."""
        return self._take(hold=False)

    def _take(self, hold: bool) -> str:
        before = self._decode(self._tokens[self._context : self._said])
        now = self._decode(self._tokens[self._context :])
        if not hold:
            now = now.rstrip("\ufffd")
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._context, self._said = self._said, len(self._tokens)
        return now[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
