"""What a task declares: the dataset shapes it takes, how a row becomes tokens, what of them is trained and how, and how
well the model does it. One class a task; what only some tasks share stands in a module beside them.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jobs.data.columns import Mapping, Shape
from jobs.data.rendering import Rendered
from jobs.errors import RowProblem, UserError
from jobs.frozen import Frozen
from jobs.shape import ModelShape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.data import Row
    from jobs.training.objective import Setting

# What stands at a model's end: transformers' Auto class for it, and PEFT's word.
Head = Literal["causal", "seq2seq", "sequence", "token", "span"]
HEADS: dict[Head, tuple[str, str]] = {
    "causal": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "seq2seq": ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    "sequence": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "token": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "span": ("AutoModelForQuestionAnswering", "QUESTION_ANS"),
}


@dataclass(frozen=True)
class Encoded:
    """One row as the trainer will see it, before it is cut to the maximum length.

    `input_ids[i]` is trained on where `trained[i]`; it stands for `text[offsets[i][0]:offsets[i][1]]`.
    """

    text: str
    input_ids: list[int]
    offsets: list[tuple[int, int]]
    trained: list[bool]
    untrained_answers: int = 0  # answers that the model's template hides from the loss
    second: Encoded | None = None  # a pair's other text: the rejected answer, the text that a source is turned into
    target: Any = None  # what a head learns, as JSON holds it: a label, several, a number, a tag for each token

    def cut(self, max_length: int) -> Encoded:
        """The first `max_length` tokens: what training uses. Raises RowProblem where none of them is trained on.

        The first token does not count: it is predicted from nothing.
        """
        if not any(self.trained[1:max_length]):
            if not any(self.trained[1:]):
                raise RowProblem("it has no token to train on")
            first = self.trained.index(True, 1)
            raise RowProblem(
                f"its answer begins beyond the maximum length (after {first:,} tokens; {max_length:,} are used)"
            )
        if len(self.input_ids) <= max_length:
            return self
        return replace(
            self,
            input_ids=self.input_ids[:max_length],
            offsets=self.offsets[:max_length],
            trained=self.trained[:max_length],
        )


@dataclass(frozen=True)
class Scores:
    """How well the validation rows were answered. `values` become curves; `details` are kept whole for the page."""

    loss: float  # mean a trained item
    values: dict[str, float] = field(default_factory=dict)  # "accuracy": 0.93
    details: dict[str, Any] = field(default_factory=dict)  # as JSON holds it: a confusion matrix, samples


class Task:
    """One thing a model can be taught. The preview, the preflight and the trainer all call the same `encode`."""

    name: ClassVar[str] = ""  # stored in specs: never change it
    label: ClassVar[str] = ""
    help: ClassVar[str] = ""
    order: ClassVar[int] = 100
    shapes: ClassVar[tuple[Shape, ...]] = ()
    head: ClassVar[Head] = "causal"
    talks: ClassVar[bool] = True  # what it trains answers in a chat; else it has a playground of its own

    class Params(Frozen):
        """The settings of this task."""

    @property
    def auto_class(self) -> str:
        """transformers' class that loads a model for this task."""
        return HEADS[self.head][0]

    @property
    def peft_task_type(self) -> str:
        return HEADS[self.head][1]

    def check_data(self, params: Any, mapping: Mapping, has_chat_template: bool) -> list[str]:
        """Problems of task, columns and chat template together that forbid training, in the user's words."""
        if mapping.shape in self.shapes:
            return []
        takes = " or ".join(shape.value for shape in self.shapes)
        return [
            f"You set the task to {self.label}, but the dataset is mapped as {mapping.shape.value}. "
            f"Map its columns as {takes}, or choose another task."
        ]

    def check_model(self, params: Any, shape: ModelShape) -> list[str]:
        """Why a model of this kind cannot do the task; empty where it can."""
        return []

    def head_parameters(self, params: Any, shape: ModelShape, labels: int) -> int:
        """Parameters of a new head for so many labels, trained whatever the method; 0 where the model has its own."""
        return 0

    def render(
        self, row: dict[str, Any], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> Rendered:
        """One row's values as the text that is tokenised, and which of it is trained. Raises RowProblem."""
        raise NotImplementedError

    adds_special_tokens: ClassVar[bool] = False  # whether the tokenizer adds its own around `render`'s text

    def encode(self, row: dict[str, Any], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any) -> Encoded:
        """One row's values as tokens. Raises RowProblem where the row cannot be trained on."""
        encoded = self.encode_batch([row], mapping, tokenizer, params)[0]
        if isinstance(encoded, RowProblem):
            raise encoded
        return encoded

    def encode_batch(
        self, rows: Sequence[dict[str, Any]], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> list[Encoded | RowProblem]:
        """Many rows at once, several times quicker than one by one: for each its tokens or why it has none.

        The one place that decides which tokens are trained: those that begin inside a rendered span.
        """
        if not tokenizer.is_fast:
            raise UserError(
                "This model's tokenizer does not say which characters its tokens stand for, so Graft cannot tell "
                "which to train. Choose a model that has a tokenizer.json."
            )
        results: list[Encoded | RowProblem] = []
        rendered: list[Rendered] = []
        for row in rows:
            try:
                rendered.append(self.render(row, mapping, tokenizer, params))
                results.append(_PENDING)
            except RowProblem as problem:
                results.append(problem)
        if not rendered:
            return results
        batch = tokenizer(
            [item.text for item in rendered],
            add_special_tokens=self.adds_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        encoded = iter(
            _encoded(item, ids, offsets, tokenizer.eos_token_id if self.adds_special_tokens else None)
            for item, ids, offsets in zip(rendered, batch["input_ids"], batch["offset_mapping"], strict=True)
        )
        return [next(encoded) if result is _PENDING else result for result in results]

    def cut(self, encoded: Encoded, max_length: int) -> Encoded:
        """What training uses of a row: its first `max_length` tokens. Raises RowProblem where none is left to learn."""
        return encoded.cut(max_length)

    def prompt_messages(self, row: dict[str, Any], mapping: Mapping) -> list[dict[str, str]]:
        """The row's beginning, up to the first answer: what a fixed prompt for this dataset looks like; empty where
        the task's model is not prompted."""
        return []

    def labels(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """What the head tells apart, in its order, from every row of the dataset; empty without such a head."""
        return ()

    def head_config(self, params: Any, labels: tuple[str, ...]) -> dict[str, Any]:
        """What `from_pretrained` must be told of the head: id2label, problem_type, ..."""
        return {}

    def items(self, row: Row) -> int:
        """How many trained items a row adds to the mean that the loss is: its trained tokens, or 1."""
        return int(row.trained[1:].sum())

    def collate(self, rows: Sequence[Row], setting: Setting) -> dict[str, torch.Tensor]:
        """Rows as one padded batch of tensors, by the names that `loss` reads."""
        from jobs.training.data import collate

        return collate(rows, setting.pad_token_id)

    def loss(
        self, model: Any, batch: dict[str, torch.Tensor], setting: Setting, predictions: list[Any] | None = None
    ) -> torch.Tensor:
        """The batch's loss, summed over its items. Where `predictions` is given, what the model predicts for each row
        is appended to it, in the batch's order."""
        from jobs.training.loss import summed_loss

        return summed_loss(model, batch)

    def score(self, loss: float, predictions: list[Any], rows: Sequence[Row], setting: Setting) -> Scores:
        """The validation rows' measures, from the mean loss and what `loss` predicted for each."""
        return Scores(loss)


_PENDING = RowProblem("not tokenised yet")


def _encoded(item: Rendered, ids: list[int], offsets: list[tuple[int, int]], end_token: int | None) -> Encoded:
    added = 0  # tokens at the front that stand for no text: the tokenizer's own beginning
    while added < len(offsets) and offsets[added][1] == 0:
        added += 1
    if end_token is not None and ids[-2:] == [end_token, end_token] and offsets[-1] == (0, 0):
        ids, offsets = ids[:-1], offsets[:-1]  # the text ends with the end token already
    end = len(offsets)
    while end > added and offsets[end - 1] == (0, 0):
        end -= 1
    trained = [False] * len(ids)
    for start, stop in item.spans:
        first = bisect.bisect_left(offsets, start, added, end, key=itemgetter(0))
        after = bisect.bisect_left(offsets, stop, first, end, key=itemgetter(0))
        trained[first:after] = [True] * (after - first)
    return Encoded(item.text, ids, offsets, trained, item.untrained_answers)
