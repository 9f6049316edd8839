"""Virtual tokens: trained vectors that stand before every input while the whole model stays as it is.

Lester et al. 2021 (prompt tuning), Liu et al. 2021 (P-tuning), Li and Liang 2021 (prefix tuning).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.methods.base import Context, Method
from jobs.methods.layered import BaseWeights
from jobs.shape import ModelShape

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

_TEXT = "Read the examples and answer exactly in their style."


class VirtualTokens(Frozen):
    tokens: int = Field(
        20,
        ge=1,
        le=512,
        title="Virtual tokens",
        description="How many stand before each input. Each takes a place in the context, and time like a word.",
    )


class PromptLearning(Method):
    """What the three share."""

    group = "Virtual tokens"
    merges = False
    sizes: ClassVar = {"tokens": (20, 40, 80)}
    # Those that answer for each token of the input would have to tell it from the virtual ones.
    task_types = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS")

    def config(self, params: Any, context: Context) -> PeftConfig:
        """PEFT's config. Imports PEFT."""
        raise NotImplementedError

    def positions(self, params: Any) -> int:
        return params.tokens  # a prefix stands in the cache, but takes places all the same

    def check(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        if params.tokens < shape.max_length:
            return []
        return [
            f"You set Virtual tokens to {params.tokens}, but {shape.architecture} takes {shape.max_length} in all, and "
            "the input needs room too. Lower it."
        ]

    def attach(self, model: PreTrainedModel, params: Any, context: Context) -> Any:
        from peft import get_peft_model

        return get_peft_model(self.prepared(model, params), self.config(params, context))


class PromptTuning(PromptLearning):
    name = "prompt-tuning"
    label = "Prompt tuning"
    help = "Trains a few made-up words before every input: kilobytes, and the model stays whole. For large models."
    order = 400

    class Params(BaseWeights, VirtualTokens):
        start: Literal["text", "words"] = Field(
            "text",
            title="Start from",
            description="A sentence that says what is wanted learns far faster than words drawn at random.",
            json_schema_extra={"labels": {"text": "A sentence", "words": "Random words"}},
        )
        text: str = Field(
            _TEXT,
            max_length=2_000,
            title="Sentence",
            description="What you would write before every input. It is repeated or cut to the number of tokens.",
        )

    def trainable(self, params: Params, shape: ModelShape) -> int:
        return params.tokens * shape.hidden_size

    def check(self, params: Params, shape: ModelShape, hardware: Hardware) -> list[str]:
        problems = super().check(params, shape, hardware)
        if params.start == "text" and not params.text.strip():
            problems.append("You set Start from to A sentence, but Sentence is empty. Write one, or take random words.")
        return problems

    def learning_rate(self, shape: ModelShape) -> float:
        return 3e-2

    def config(self, params: Params, context: Context) -> PeftConfig:
        from peft import PromptTuningConfig, PromptTuningInit

        start: dict[str, Any] = {"prompt_tuning_init": PromptTuningInit.SAMPLE_VOCAB}
        if params.start == "text":
            start = {
                "prompt_tuning_init": PromptTuningInit.TEXT,
                "prompt_tuning_init_text": params.text,
                "tokenizer_name_or_path": context.source,
                "tokenizer_kwargs": {"revision": context.revision} if context.revision else None,
            }
        return PromptTuningConfig(
            task_type=context.task_type, num_virtual_tokens=params.tokens, num_transformer_submodules=1, **start
        )


class PTuning(PromptLearning):
    name = "p-tuning"
    label = "P-tuning"
    help = "Prompt tuning with a small network that makes the words: steadier, larger while training only."
    order = 410

    class Params(BaseWeights, VirtualTokens):
        width: int = Field(
            128, ge=1, le=8_192, title="Network width", description="Inner size of the network that makes the tokens."
        )

    def trainable(self, params: Params, shape: ModelShape) -> int:
        hidden, width = shape.hidden_size, params.width
        network = (hidden * width + width) + (width * width + width) + (width * hidden + hidden)
        return params.tokens * hidden + network

    def learning_rate(self, shape: ModelShape) -> float:
        return 1e-2

    def config(self, params: Params, context: Context) -> PeftConfig:
        from peft import PromptEncoderConfig

        return PromptEncoderConfig(
            task_type=context.task_type,
            num_virtual_tokens=params.tokens,
            num_transformer_submodules=1,
            encoder_hidden_size=params.width,
        )


class PrefixTuning(PromptLearning):
    name = "prefix-tuning"
    label = "Prefix tuning"
    help = "Trains keys and values that every attention layer sees before the input: stronger than prompt tuning."
    order = 420
    recomputes = False  # transformers drops the cache that the prefix stands in

    class Params(BaseWeights, VirtualTokens):
        projection: bool = Field(
            False,
            title="Through a network",
            description="Makes the prefix by a small network: steadier, but many more parameters while training.",
        )
        width: int = Field(
            128,
            ge=1,
            le=8_192,
            title="Network width",
            description="Inner size of that network.",
            json_schema_extra={"advanced": True},
        )

    def trainable(self, params: Params, shape: ModelShape) -> int:
        each = shape.kv_heads * shape.head_dim
        everywhere = 2 * shape.layers * each  # a key and a value in each layer
        if not params.projection:
            return params.tokens * everywhere
        network = (each * params.width + params.width) + (params.width * everywhere + everywhere)
        return params.tokens * each + network

    def check(self, params: Params, shape: ModelShape, hardware: Hardware) -> list[str]:
        problems = super().check(params, shape, hardware)
        if shape.family == "encoder":
            problems.append(
                f"You chose {self.label}, but {shape.architecture} keeps no keys and values that a prefix could stand "
                "in. Choose Prompt tuning or LoRA."
            )
        uneven = [m for m in shape.linears if m.leaf == "k" and m.out_features != shape.hidden_size]
        if shape.family == "encoder-decoder" and (uneven or _decoder_layers(shape) != shape.layers):
            problems.append(
                f"You chose {self.label}, but PEFT can make a prefix only where the decoder has the encoder's sizes, "
                f"and {shape.architecture}'s has others. Choose Prompt tuning or LoRA."
            )
        return problems

    def learning_rate(self, shape: ModelShape) -> float:
        return 1e-1 if shape.parameters < 1_500_000_000 else 3e-2

    def config(self, params: Params, context: Context) -> PeftConfig:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(
            task_type=context.task_type,
            num_virtual_tokens=params.tokens,
            prefix_projection=params.projection,
            encoder_hidden_size=params.width,
            init_weights="zero",
        )


def _decoder_layers(shape: ModelShape) -> int:
    return len(
        {match.group(1) for m in shape.linears if (match := re.match(r"(?:.*\.)?decoder\.\w+\.(\d+)\.", m.name))}
    )
