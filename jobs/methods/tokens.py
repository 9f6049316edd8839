"""Trainable tokens: the embeddings of a few tokens, and nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import Field

from jobs.errors import UserError
from jobs.hardware import Hardware
from jobs.methods.base import Context, Method
from jobs.methods.layered import BaseWeights
from jobs.shape import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OTHER_WIDTH = ("albert", "electra")  # their embeddings are narrower than their layers


class TrainableTokens(Method):
    name = "trainable-tokens"
    label = "Trainable tokens"
    help = "Trains only what the tokens you name mean: for markers and special tokens that the base never learnt."
    group = "Few parameters"
    order = 260

    class Params(BaseWeights):
        tokens: str = Field(
            "",
            max_length=5_000,
            title="Tokens",
            description="Separated by spaces, as in the tokenizer: <|im_start|> <|im_end|>; or numbers, as #151644.",
        )

    def trainable(self, params: Params, shape: ModelShape) -> int:
        return len(_split(params.tokens)) * shape.hidden_size

    def held_memory(self, params: Params, shape: ModelShape, recompute: bool, width: int) -> int:
        return 2 * 4 * shape.vocab_size * shape.hidden_size  # the whole embedding with them in it, and its gradient

    def check(self, params: Params, shape: ModelShape, hardware: Hardware) -> list[str]:
        if shape.model_type in _OTHER_WIDTH:
            return [f"You chose {self.label}, which does not know {shape.architecture}'s embeddings. Choose LoRA."]
        wanted = _split(params.tokens)
        if not wanted:
            return [
                f"You chose {self.label}, but Tokens is empty. Name the tokens to train, such as <|im_start|>; for "
                "anything else choose LoRA."
            ]
        beyond = [word for word in wanted if (number := _number(word)) is not None and number >= shape.vocab_size]
        return [
            f"You set Tokens to {word}, but {shape.architecture} knows {shape.vocab_size:,} tokens." for word in beyond
        ]

    def learning_rate(self, shape: ModelShape) -> float:
        return 3e-2 if shape.parameters < 1_500_000_000 else 2e-3

    def attach(self, model: PreTrainedModel, params: Params, context: Context) -> Any:
        from peft import TrainableTokensConfig, get_peft_model
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(context.source, revision=context.revision)
        # PEFT's own classes for these two ask the config for heads to train, which this one has no field for. The
        # plain class does not, and jobs.training.heads trains the head.
        asks = context.task_type in ("TOKEN_CLS", "QUESTION_ANS")
        config = TrainableTokensConfig(
            task_type=None if asks else context.task_type,
            token_indices=token_ids(_split(params.tokens), tokenizer),
        )
        return get_peft_model(self.prepared(model, params), config)


def token_ids(wanted: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The number of each token. Raises UserError with every one that is none, or named twice."""
    vocabulary = tokenizer.get_vocab()
    problems, found = [], []
    for word in wanted:
        number = _number(word)
        if number is None and word not in vocabulary:
            pieces = tokenizer.tokenize(word)
            problems.append(
                f"You set Tokens to {word!r}, but to this model that is {len(pieces)} tokens: {' '.join(pieces)}. Name "
                "tokens as its tokenizer writes them."
            )
        elif (token := vocabulary[word] if number is None else number) in found:
            problems.append(f"You named the token {word!r} twice in Tokens.")
        else:
            found.append(token)
    if problems:
        raise UserError(*problems)
    return found


def _split(tokens: str) -> list[str]:
    return tokens.split()


def _number(word: str) -> int | None:
    match = re.fullmatch(r"#(\d+)", word)
    return int(match.group(1)) if match else None
