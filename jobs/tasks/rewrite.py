"""One text into another: translation, summarization, a change of style. Once for decoders, which are asked as in a
chat, and once for models with an encoder for the source and a decoder for what it becomes (T5 and its kin).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from jobs.data.columns import Mapping, Shape
from jobs.data.rendering import Rendered, prompt_text, render_answers
from jobs.data.templates import Templated
from jobs.data.turns import Turn
from jobs.errors import RowProblem, UserError
from jobs.shape import ModelShape
from jobs.tasks.base import Encoded, Scores, Task
from jobs.tasks.chat import needs_template
from jobs.tasks.predictions import Prediction, Written
from jobs.tasks.rewriting import SHOWN, RewriteParams, measures, pair, suggested_instruction
from jobs.tasks.supported import ENCODER_DECODERS, OF_LANGUAGES

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.data import Row
    from jobs.training.objective import Setting


class _Rewriting(Task):
    """What both have: pairs of texts, and measures of what the model writes."""

    shapes = (Shape.REWRITE, Shape.PROMPT, Shape.INSTRUCTION)
    borrowed: ClassVar[tuple[Shape, ...]] = (Shape.PROMPT, Shape.INSTRUCTION)
    talks = False
    inputs: ClassVar[dict[str, bool]] = {"text": True}
    weighing = frozenset({"measured", "longest"})

    def prompt(self, source: str, tokenizer: PreTrainedTokenizerBase, params: Any) -> list[int]:
        """What the model is given to write the text that `source` becomes. Raises RowProblem."""
        raise NotImplementedError

    def asked(self, row: Row) -> list[int]:
        """The same of a row."""
        raise NotImplementedError

    def answer(self, row: Row) -> list[int]:
        """The row's tokens that the model should write."""
        raise NotImplementedError

    def write_and_measure(self, model: Any, rows: Sequence[Row], setting: Setting) -> Scores | None:
        from jobs.training.writing import write_all

        taken = rows[: setting.params.measured]
        if not taken:
            return None
        decode = setting.tokenizer.decode
        written = write_all(model, setting.tokenizer, [self.asked(row) for row in taken], setting.params.longest)
        written = [text.strip() for text in written]
        expected = [str(decode(self.answer(row), skip_special_tokens=True)).strip() for row in taken]
        shown = [
            {"row": row.number, "text": setting.samples[row.number].target, "expected": right, "predicted": said}
            for row, right, said in zip(taken, expected, written, strict=True)
            if row.number in setting.samples
        ]
        return Scores(0.0, measures(written, expected), {"samples": shown[:SHOWN]} if shown else {})

    def predict(self, model: Any, inputs: Sequence[dict[str, str]], setting: Setting) -> list[Prediction]:
        from jobs.training.writing import write_all

        try:
            prompts = [self.prompt(given["text"], setting.tokenizer, setting.params) for given in inputs]
        except RowProblem as problem:
            raise UserError(f"This text cannot be used: {problem}.") from problem
        if (longest := max(map(len, prompts))) > setting.max_length:  # cut, it would lose what asks for the answer
            raise UserError(
                f"This text is {longest:,} tokens long with its instruction, and the model was trained with at most "
                f"{setting.max_length:,}. Shorten it, or give it in parts."
            )
        written = write_all(model, setting.tokenizer, prompts, setting.params.longest)
        return [Written(text=text.strip()) for text in written]


class Rewrite(_Rewriting):
    name = "rewrite"
    label = "Translation and summarization"
    help = "Teaches the model to turn one text into another: to translate, summarize, correct or restyle it."
    order = 40
    packs = True

    class Params(RewriteParams, Templated):
        pass

    def check_data(self, params: Any, mapping: Mapping, has_chat_template: bool) -> list[str]:
        return [
            *super().check_data(params, mapping, has_chat_template),
            *needs_template(params, has_chat_template),
        ]

    def suggest(self, mapping: Mapping) -> dict[str, Any]:
        return {"instruction": suggested_instruction(mapping, "Translate {} into {}:", "Summarize:")}

    def render(
        self, row: dict[str, Any], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> Rendered:
        source, target = pair(row, mapping)
        answer: Turn = {"role": "assistant", "content": target}
        return render_answers(tokenizer, [*_question(source, params), answer], last_only=True)

    def encode_batch(
        self, rows: Sequence[dict[str, Any]], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> list[Encoded | RowProblem]:
        return _with_sources(super().encode_batch(rows, mapping, tokenizer, params), rows, mapping)

    def cut(self, encoded: Encoded, max_length: int) -> Encoded:
        return replace(encoded.cut(max_length), target=None)

    def prompt(self, source: str, tokenizer: PreTrainedTokenizerBase, params: Any) -> list[int]:
        text = prompt_text(tokenizer, _question(source, params))
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def asked(self, row: Row) -> list[int]:
        return list(row.input_ids[: int(row.trained.argmax())].tolist())

    def answer(self, row: Row) -> list[int]:
        return list(row.input_ids[row.trained].tolist())


class Seq2Seq(_Rewriting):
    name = "seq2seq"
    label = "Translation and summarization (encoder-decoder)"
    help = "The same for models of T5's kind: one part reads the text, another writes what it is turned into."
    order = 41
    head = "seq2seq"
    adds_special_tokens = True

    class Params(RewriteParams):
        pass

    def check_model(self, params: Any, shape: ModelShape) -> list[str]:
        if problems := super().check_model(params, shape):
            return problems
        if shape.model_type in ENCODER_DECODERS:
            return []
        why = "is none that Graft knows to read and write texts"
        if shape.model_type in OF_LANGUAGES:
            why = "must be told the languages in a way of its own, which Graft does not do"
        return [
            f"The task is {self.label}, but a base model of the kind {shape.model_type} {why}. Choose one of "
            "T5's, BART's or Pegasus' kind, such as google/flan-t5-small, or a decoder."
        ]

    def suggest(self, mapping: Mapping) -> dict[str, Any]:
        # As T5 was trained to be asked.
        return {"instruction": suggested_instruction(mapping, "translate {} to {}:", "summarize:")}

    def texts(
        self, row: dict[str, Any], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> tuple[Rendered, ...]:
        source, target = pair(row, mapping)
        return Rendered(_given(source, params), ()), Rendered(target, ((0, len(target)),))

    def encode_batch(
        self, rows: Sequence[dict[str, Any]], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> list[Encoded | RowProblem]:
        encoded = _with_sources(super().encode_batch(rows, mapping, tokenizer, params), rows, mapping)
        return [
            item
            if isinstance(item, RowProblem) or item.second is None
            else replace(item, second=replace(item.second, trained=[True] * len(item.second.input_ids)))  # the end, too
            for item in encoded
        ]

    def cut(self, encoded: Encoded, max_length: int) -> Encoded:
        """A source that is cut keeps its last token, the end that the encoder knows; a target is only cut."""
        assert encoded.second is not None
        first, second = encoded, encoded.second
        if len(first.input_ids) > max_length:
            first = replace(
                first,
                input_ids=[*first.input_ids[: max_length - 1], first.input_ids[-1]],
                offsets=first.offsets[:max_length],
                trained=first.trained[:max_length],
            )
        return replace(first, target=None, second=second.cut(max_length) if len(second.input_ids) > 1 else second)

    def items(self, row: Row) -> int:
        return len(row.second) if row.second else 0

    def collate(self, rows: Sequence[Row], setting: Setting) -> dict[str, torch.Tensor]:
        from jobs.training.data import collate

        batch = collate([replace(row, second=None) for row in rows], setting.pad_token_id)
        targets = collate([row.second for row in rows if row.second], setting.pad_token_id)
        return {**batch, "labels": targets["labels"]}

    def loss(
        self, model: Any, batch: dict[str, torch.Tensor], setting: Setting, predictions: list[Any] | None = None
    ) -> torch.Tensor:
        from jobs.training.loss import right_tokens, token_losses

        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        labels = batch["labels"]
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=base.prepare_decoder_input_ids_from_labels(labels=labels),
            use_cache=False,
        ).logits
        if predictions is not None:
            predictions += right_tokens(logits, labels)
        return token_losses(logits, labels).sum()

    def prompt(self, source: str, tokenizer: PreTrainedTokenizerBase, params: Any) -> list[int]:
        return list(tokenizer(_given(source, params))["input_ids"])

    def asked(self, row: Row) -> list[int]:
        return list(row.input_ids.tolist())

    def answer(self, row: Row) -> list[int]:
        return list(row.second.input_ids.tolist()) if row.second else []


def _question(source: str, params: Any) -> list[Turn]:
    instruction = params.instruction.strip()
    return [{"role": "user", "content": f"{instruction}\n\n{source}" if instruction else source}]


def _given(source: str, params: Any) -> str:
    return f"{params.instruction.strip()} {source}".lstrip()


def _with_sources(
    encoded: list[Encoded | RowProblem], rows: Sequence[dict[str, Any]], mapping: Mapping
) -> list[Encoded | RowProblem]:
    """Each with its source text, bare of instruction and template, for the page to show beside what was written."""
    return [
        item if isinstance(item, RowProblem) else replace(item, target=pair(row, mapping)[0])
        for item, row in zip(encoded, rows, strict=True)
    ]
