"""Text regression: a number for each text or pair of texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.data.columns import Mapping, Shape
from jobs.data.values import score_of, texts_of
from jobs.errors import RowProblem, UserError
from jobs.shape import ModelShape
from jobs.tasks import reading, sizes
from jobs.tasks.base import Encoded, Scores, Task
from jobs.tasks.predictions import Number, Prediction

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.data import Row
    from jobs.training.objective import Setting


class Regression(Task):
    """The head learns scores of mean 0 and deviation 1, whatever their scale; predictions are in the data's units."""

    name = "regression"
    label = "Text regression"
    help = "Teaches the model to give a text a number: a rating, a similarity, a grade."
    order = 80
    shapes = (Shape.SCORED,)
    head = "sequence"
    talks = False
    inputs = {"text": True, "text_pair": False}  # noqa: RUF012 - a class variable, as the base declares it
    measures = {  # noqa: RUF012
        "mse": "Mean squared error, in the data's units squared.",
        "mae": "Mean distance from the right number, in the data's units.",
        "r2": "Share of the numbers' variance that is explained.",
        "pearson": "Linear correlation with the right numbers.",
        "spearman": "Correlation of the order with the right order.",
    }

    def head_parameters(self, params: Any, shape: ModelShape, labels: int) -> int:
        return sizes.sequence_head(shape, 1)

    def encode_batch(
        self, rows: Sequence[dict[str, Any]], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> list[Encoded | RowProblem]:
        given: list[tuple[str, str, float] | RowProblem] = []
        for row in rows:
            try:
                given.append((*texts_of(row, mapping), score_of(row, mapping)))
            except RowProblem as problem:
                given.append(problem)
        good = [item for item in given if not isinstance(item, RowProblem)]
        tokens = reading.tokenise(tokenizer, [text for text, _, _ in good], [second for _, second, _ in good])
        return [item if isinstance(item, RowProblem) else replace(next(tokens)[0], target=item[2]) for item in given]

    def cut(self, encoded: Encoded, max_length: int) -> Encoded:
        return reading.cut(encoded, max_length)

    def target_text(self, encoded: Encoded, params: Any) -> str:
        return f"{encoded.target:g}"

    def facts(self, rows: Iterable[Row], params: Any) -> dict[str, Any]:
        """Mean and deviation of the scores. Raises UserError where they are all the same."""
        scores = [row.target for row in rows]
        mean = math.fsum(scores) / len(scores)
        deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
        if deviation == 0:
            raise UserError(f"Every row has the number {mean:g}: there is nothing to learn. Choose another column.")
        return {"mean": mean, "deviation": deviation, "lowest": min(scores), "highest": max(scores)}

    def head_config(self, setting: Setting) -> dict[str, Any]:
        return {
            "num_labels": 1,
            "problem_type": "regression",
            "pad_token_id": setting.pad_token_id,  # without one a decoder's head refuses a batch
            "ignore_mismatched_sizes": True,
        }

    def items(self, row: Row) -> int:
        return 1

    def collate(self, rows: Sequence[Row], setting: Setting) -> dict[str, torch.Tensor]:
        """`labels`: [rows], in deviations from the mean."""
        import torch

        mean, deviation = setting.facts["mean"], setting.facts["deviation"]
        labels = torch.tensor([(row.target - mean) / deviation for row in rows], dtype=torch.float32)
        return {**reading.collate(rows, setting), "labels": labels}

    def loss(
        self, model: Any, batch: dict[str, torch.Tensor], setting: Setting, predictions: list[Any] | None = None
    ) -> torch.Tensor:
        """Squared error in deviations. Appends each row's number in the data's units."""
        said = reading.judged(model, batch).squeeze(1)
        if predictions is not None:
            predictions += _in_units(said.tolist(), setting)
        return (said - batch["labels"]).square().sum()

    def score(self, loss: float, predictions: list[Any], rows: Sequence[Row], setting: Setting) -> Scores:
        from jobs.tasks import measures

        values, details = measures.numbers([row.target for row in rows], predictions)
        details["samples"] = [
            {
                "row": row.number,
                "text": reading.sample_text(row, setting),
                "expected": f"{row.target:g}",
                "predicted": f"{predictions[place]:.4g}",
                "confidence": None,
            }
            for place, row in reading.by_number(rows, setting)
        ]
        return Scores(loss, values, details)

    def predict(self, model: Any, inputs: Sequence[dict[str, str]], setting: Setting) -> list[Prediction]:
        said = reading.outputs(model, inputs, setting, self.cut).squeeze(1).tolist()
        return [Number(value=value) for value in _in_units(said, setting)]

    def baseline(self, setting: Setting) -> Prediction | None:
        return Number(value=setting.facts["mean"])


def _in_units(values: Sequence[float], setting: Setting) -> list[float]:
    return [setting.facts["mean"] + value * setting.facts["deviation"] for value in values]
