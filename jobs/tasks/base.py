"""What a task declares: the dataset shapes it takes, how a row becomes tokens, what of them is trained and how, and how
well the model does it. One class a task; what only some tasks share stands in a module beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jobs.data.columns import Mapping, Shape
from jobs.data.rendering import Rendered
from jobs.data.tokens import Tokens, tokenise
from jobs.errors import RowProblem, UserError
from jobs.frozen import Frozen
from jobs.shape import Family, ModelShape
from jobs.tasks import sizes
from jobs.tasks.supported import has_head

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.tasks.predictions import Prediction
    from jobs.training.data import Row
    from jobs.training.load import Device
    from jobs.training.objective import Setting

# What stands at a model's end: transformers' Auto class for it, and PEFT's word.
Head = Literal["causal", "seq2seq", "sequence", "token", "span"]
READERS: tuple[Head, ...] = ("sequence", "token", "span")  # heads that are new: they read, and write nothing
HEADS: dict[Head, tuple[str, str]] = {
    "causal": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "seq2seq": ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    "sequence": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "token": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "span": ("AutoModelForQuestionAnswering", "QUESTION_ANS"),
}
_FAMILIES: dict[Head, tuple[Family, ...]] = {
    "causal": ("decoder",),
    "seq2seq": ("encoder-decoder",),
    "sequence": ("encoder", "decoder"),
    "token": ("encoder", "decoder"),
    "span": ("encoder", "decoder"),
}
_ENCODER_WRITES_NOT = (
    "this base model is an encoder: it reads texts and writes none. Choose a model that writes, such as "
    "SmolLM2-135M-Instruct, or one of the tasks that classify, tag or find answers."
)
_READER = "Choose an encoder, such as all-MiniLM-L6-v2, or a decoder, such as SmolLM2-135M-Instruct."
_CANNOT: dict[tuple[Head, Family], str] = {
    ("causal", "encoder"): _ENCODER_WRITES_NOT,
    ("causal", "encoder-decoder"): "this base model turns one text into another and does not write one on. Choose a "
    "decoder, such as SmolLM2-135M-Instruct, or the task that translates and summarizes.",
    ("seq2seq", "encoder"): _ENCODER_WRITES_NOT,
    ("seq2seq", "decoder"): "this base model is a decoder, which has no part of its own for the source text. Choose a "
    "model with encoder and decoder, such as T5, or the task Chat.",
    **{(head, "encoder-decoder"): f"this base model turns one text into another. {_READER}" for head in READERS},
}

_LOG_PERPLEXITY = math.log(1e6)  # beyond it a curve shows nothing else


@dataclass(frozen=True)
class Encoded:
    """One row as the trainer will see it, before it is cut to the maximum length.

    `input_ids[i]` is trained on where `trained[i]`; it stands for `text[offsets[i][0]:offsets[i][1]]`.
    """

    text: str
    input_ids: list[int]
    offsets: Sequence[tuple[int, int]]
    trained: list[bool]
    untrained_answers: int = 0  # answers that the model's template hides from the loss
    second: Encoded | None = None  # a pair's other text: the rejected answer, the text that a source is turned into
    types: list[int] | None = None  # 0 or 1: to which of a pair of texts in one sequence each token belongs
    target: Any = None  # what a head learns, as JSON holds it: a label, several, a number, a tag for each token

    @property
    def texts(self) -> tuple[Encoded, ...]:
        """Itself, and its second text where it has one."""
        return (self, self.second) if self.second else (self,)

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
    borrowed: ClassVar[tuple[Shape, ...]] = ()  # of `shapes`: those that another task is made for
    head: ClassVar[Head] = "causal"
    talks: ClassVar[bool] = True  # what it trains answers in a chat; else it has a playground of its own

    rate_scale: ClassVar[float] = 1.0  # what its learning rate is of the method's usual one
    sequences: ClassVar[int] = 1  # texts of the maximum length that one row puts through the model at once
    packs: ClassVar[bool] = (
        False  # its loss comes from its tokens' losses (`packed_loss`), so the packed loop trains it
    )
    follows_steps: ClassVar[bool] = False  # whether `step_values` has something to tell
    weighing: ClassVar[frozenset[str]] = frozenset()  # settings of loss and measures alone: rows are encoded the same

    class Params(Frozen):
        """The settings of this task."""

    @property
    def auto_class(self) -> str:
        """transformers' class that loads a model for this task."""
        return HEADS[self.head][0]

    @property
    def peft_task_type(self) -> str:
        return HEADS[self.head][1]

    def suggest(self, mapping: Mapping) -> dict[str, Any]:
        """Settings that a dataset mapped like this suggests, over the defaults."""
        return {}

    def check_data(self, params: Any, mapping: Mapping, has_chat_template: bool) -> list[str]:
        """Problems of task, columns and chat template together that forbid training, in the user's words."""
        if mapping.shape in self.shapes:
            return []
        takes = " or ".join(shape.value for shape in self.shapes)
        return [
            f"The task is {self.label}, but the dataset is mapped as {mapping.shape.value}. "
            f"Map its columns as {takes}, or choose another task."
        ]

    def check_model(self, params: Any, shape: ModelShape) -> list[str]:
        """Why a model of this kind cannot do the task; empty where it can."""
        if shape.family not in _FAMILIES[self.head]:
            return [f"The task is {self.label}, but {_CANNOT[self.head, shape.family]}"]
        if self.head in READERS and not has_head(self.head, shape.model_type, shape.family == "encoder"):
            return [
                f"The task is {self.label}, but transformers has no such head for models of the kind "
                f"{shape.model_type}. {_READER}"
            ]
        return []

    def head_parameters(self, params: Any, shape: ModelShape, labels: int) -> int:
        """Parameters of a new head for so many labels, trained whatever the method; 0 where the model has its own."""
        return 0

    def body(self, shape: ModelShape) -> ModelShape:
        """What of a stored model is trained for this task: a head that a new one stands in for is not loaded."""
        return sizes.body(shape, self.head == "sequence") if self.head in READERS else shape

    def new_head(self, params: Any, shape: ModelShape, labels: int) -> int | None:
        """Parameters of the head that training adds; None where the model's own, over its vocabulary, is used."""
        return self.head_parameters(params, shape, labels) if self.head in READERS else None

    def render(
        self, row: dict[str, Any], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> Rendered:
        """One row's values as the text that is tokenised, and which of it is trained. Raises RowProblem."""
        raise NotImplementedError

    def texts(
        self, row: dict[str, Any], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> tuple[Rendered, ...]:
        """As `render`, for tasks whose rows are two texts: the second becomes `Encoded.second`."""
        return (self.render(row, mapping, tokenizer, params),)

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
        check_fast(tokenizer)
        results: list[int | RowProblem] = []  # how many texts a row has
        rendered: list[Rendered] = []
        for row in rows:
            try:
                texts = self.texts(row, mapping, tokenizer, params)
                rendered += texts
                results.append(len(texts))
            except RowProblem as problem:
                results.append(problem)
        if not rendered:
            return [result for result in results if isinstance(result, RowProblem)]
        tokens = tokenise(tokenizer, [item.text for item in rendered], self.adds_special_tokens)
        encoded = map(_encoded, rendered, tokens)
        return [
            result
            if isinstance(result, RowProblem)
            else next(encoded)
            if result == 1
            else replace(next(encoded), second=next(encoded))
            for result in results
        ]

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

    def facts(self, rows: Iterable[Row], params: Any) -> dict[str, Any]:
        """What else of the whole dataset the head must know, as JSON holds it: the mean of what it predicts, how
        often each label comes. Kept with the adapter."""
        return {}

    def head_config(self, setting: Setting) -> dict[str, Any]:
        """What `from_pretrained` must be told of the head: id2label, problem_type, ..."""
        return {}

    def target_text(self, encoded: Encoded, params: Any) -> str:
        """What a head learns of the row, in words; empty where the text itself is what is learned."""
        return ""

    def token_tags(self, encoded: Encoded) -> Sequence[str]:
        """What a head learns of each token, "" where nothing; empty where it learns of the whole text."""
        return ()

    def target_labels(self, encoded: Encoded | Row) -> Sequence[str]:
        """The labels that a row carries, each time it does: how balanced a dataset is comes from counting them,
        and in their shares rows are kept aside to validate with."""
        return ()

    def check_labels(self, params: Any, counts: dict[str, int], rows: int) -> tuple[list[str], list[str]]:
        """(problems that forbid training, what is worth knowing) of the labels that so many rows carry."""
        return [], []

    def prepare(
        self,
        model: Any,
        train: Sequence[Row],
        validation: Sequence[Row],
        setting: Setting,
        *,
        device: Device,
        batch_size: int,
        progress: Callable[[int, int], None],
    ) -> Any:
        """What the task keeps as `Setting.prepared`: what it must know of the untrained model, before a method is
        attached to it, or of all rows. `train` holds those that the run will see. `progress` is told how many of how
        many rows are done; it may raise to end it.
        """
        return None

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
        is appended to it, in the batch's order: here how many of its trained tokens it would have chosen itself."""
        from jobs.training.loss import summed_loss

        return summed_loss(model, batch, predictions)

    def packed_loss(
        self,
        losses: torch.Tensor,
        texts: torch.Tensor,
        rows: Sequence[Row],
        setting: Setting,
        predictions: list[Any] | None = None,
    ) -> torch.Tensor:
        """What `loss` is, from the losses [tokens] of the trained tokens of `rows`, and the number of the text, int64
        [tokens], that each stands in: the rows' first texts, then their second ones."""
        return losses.sum()

    def step_values(self, predictions: list[Any]) -> dict[str, float]:
        """Measures of one step's own rows, from what `loss` appended for them; only where `follows_steps`."""
        return {}

    def write_and_measure(self, model: Any, rows: Sequence[Row], setting: Setting) -> Scores | None:
        """Measures for which the model must write: of the validation rows, or some of them. Its loss is not looked at.
        The model stands in eval mode. None where there are no such measures."""
        return None

    def score(self, loss: float, predictions: list[Any], rows: Sequence[Row], setting: Setting) -> Scores:
        """The validation rows' measures, from the mean loss and what `loss` predicted for each."""
        right = sum(predictions) / max(1, sum(map(self.items, rows)))
        return Scores(loss, {"perplexity": math.exp(min(loss, _LOG_PERPLEXITY)), "token_accuracy": right})

    unknown_before: ClassVar[tuple[str, ...]] = ()  # of what `score` measures: what an untrained model has none of
    measures: ClassVar[dict[str, str]] = {}  # what `score` measures beside the loss, and what each says
    inputs: ClassVar[dict[str, bool]] = {}  # what `predict` is given, by name, and whether it must be

    def predict(self, model: Any, inputs: Sequence[dict[str, str]], setting: Setting) -> list[Prediction]:
        """What a trained model says of each input. `model` stands in eval mode, on its device.

        Raises UserError for an input that cannot be used.
        """
        raise NotImplementedError

    def baseline(self, setting: Setting) -> Prediction | None:
        """What could be said without looking at the input: the most frequent label, the mean."""
        return None


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError for a tokenizer that does not know where its tokens stand in the text."""
    if not tokenizer.is_fast:
        raise UserError(
            "This model's tokenizer does not say which characters its tokens stand for, so Graft cannot tell "
            "which to train. Choose a model that has a tokenizer.json."
        )


def _encoded(item: Rendered, tokens: Tokens) -> Encoded:
    return Encoded(item.text, tokens.ids, tokens.offsets, tokens.trained(item.spans), item.untrained_answers)
