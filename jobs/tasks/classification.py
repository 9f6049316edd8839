"""Text classification: one label for each text or pair of texts, or several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.data.columns import Mapping, Shape
from jobs.data.values import labels_of, texts_of
from jobs.errors import RowProblem, UserError
from jobs.frozen import Frozen
from jobs.shape import ModelShape
from jobs.tasks import reading, sizes
from jobs.tasks.base import Encoded, Scores, Task
from jobs.tasks.predictions import Labels, LabelScore, Prediction

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.data import Row
    from jobs.training.objective import Setting

MOST_LABELS = 1_000
_IMBALANCE = 10  # times as many rows of one label as of another
_CHOSEN_AT = 0.5  # probability from which one of several labels counts as given
_MOST_WEIGHT = 100.0  # of one label in the loss


class Classification(Task):
    name = "classification"
    label = "Text classification"
    help = "Teaches the model to sort texts: by topic, mood, urgency, language. One label a text, or several."
    order = 50
    shapes = (Shape.LABELLED,)
    head = "sequence"
    talks = False
    inputs = {"text": True, "text_pair": False}  # noqa: RUF012 - a class variable, as the base declares it
    measures = {  # noqa: RUF012
        "accuracy": "Share of rows with the right label.",
        "macro_f1": "F1 of each label, and their mean: a rare label counts as much as a frequent one.",
        "micro_f1": "F1 over all labels of all rows; with several labels a text.",
        "exact_match": "Share of rows with every label right and none besides; with several labels a text.",
    }

    weighing = frozenset({"balance"})

    class Params(Frozen):
        labels: Literal["as the data is", "one label", "several labels"] = Field(
            "as the data is",
            title="Labels a text",
            description="Whether a text has exactly one label, or any number of them. Usually the data says it.",
        )
        balance: bool = Field(
            False,
            title="Balance labels",
            description="Rare labels count more in the loss: helps where one label has most of the rows.",
        )

    def head_parameters(self, params: Any, shape: ModelShape, labels: int) -> int:
        return sizes.sequence_head(shape, labels)

    def encode_batch(
        self, rows: Sequence[dict[str, Any]], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Params
    ) -> list[Encoded | RowProblem]:
        given: list[tuple[str, str, tuple[str, ...]] | RowProblem] = []
        for row in rows:
            try:
                labels = labels_of(row, mapping)
                if params.labels == "one label" and len(labels) != 1:
                    raise RowProblem(f"it has not one label, which you set ({len(labels)} labels)")
                given.append((*texts_of(row, mapping), labels))
            except RowProblem as problem:
                given.append(problem)
        good = [item for item in given if not isinstance(item, RowProblem)]
        tokens = reading.tokenise(tokenizer, [text for text, _, _ in good], [second for _, second, _ in good])
        return [
            item if isinstance(item, RowProblem) else replace(next(tokens)[0], target=list(item[2])) for item in given
        ]

    def cut(self, encoded: Encoded, max_length: int) -> Encoded:
        return reading.cut(encoded, max_length)

    def target_text(self, encoded: Encoded, params: Any) -> str:
        return ", ".join(encoded.target) or "no label"

    def target_labels(self, encoded: Encoded | Row) -> Sequence[str]:
        return encoded.target

    def check_labels(self, params: Params, counts: dict[str, int], rows: int) -> tuple[list[str], list[str]]:
        problems, notes = [], []
        if len(counts) == 1 and sum(counts.values()) >= rows:
            problems.append(f"Every row has the label {next(iter(counts))!r}: there is nothing to tell apart.")
        elif len(counts) > MOST_LABELS or (len(counts) > 20 and len(counts) > rows / 2):
            problems.append(
                f"The label column holds {len(counts):,} different labels in {rows:,} rows. Is it a text or a number? "
                "Choose another column, or for numbers the task Text regression."
            )
        elif counts:
            rare = [name for name, count in counts.items() if count == 1]
            if rare:
                named = ", ".join(repr(name) for name in rare[:5]) + (" ..." if len(rare) > 5 else "")
                are = "labels have" if len(rare) > 1 else "label has"
                notes.append(f"{len(rare):,} {are} a single row ({named}): too few to learn from, or to measure.")
            most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
            if counts[most] >= _IMBALANCE * counts[least] and not params.balance:
                notes.append(
                    f"Labels are uneven: {counts[most]:,} rows of {most!r}, {counts[least]:,} of {least!r}. Consider "
                    "Balance labels, and look at macro F1 rather than accuracy."
                )
        return problems, notes

    def labels(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """In natural order: "2" before "10". Raises UserError where there is nothing to tell apart."""
        found: set[str] = set()
        always = True
        for row in rows:
            found.update(row.target)
            always = always and len(row.target) == 1
        if not found or (len(found) < 2 and always):
            raise UserError("Every row has the same label: there is nothing to tell apart. Choose another column.")
        return tuple(sorted(found, key=reading.natural))

    def facts(self, rows: Iterable[Row], params: Params) -> dict[str, Any]:
        """Whether texts have several labels, how many rows there are, and how many of each label."""
        counts: Counter[str] = Counter()
        several, total = params.labels == "several labels", 0
        for row in rows:
            counts.update(row.target)
            several = several or len(row.target) != 1
            total += 1
        return {"several": several, "rows": total, "counts": dict(sorted(counts.items()))}

    def head_config(self, setting: Setting) -> dict[str, Any]:
        names = dict(enumerate(setting.labels))
        return {
            "id2label": names,
            "label2id": {label: number for number, label in names.items()},
            "problem_type": "multi_label_classification" if setting.facts["several"] else "single_label_classification",
            "pad_token_id": setting.pad_token_id,  # without one a decoder's head refuses a batch
            "ignore_mismatched_sizes": True,  # a base model that has a classifier of its own gets a new one
        }

    def items(self, row: Row) -> int:
        return 1

    def collate(self, rows: Sequence[Row], setting: Setting) -> dict[str, torch.Tensor]:
        """`labels`: [rows] places of the label, or [rows, labels] of 0 and 1."""
        import torch

        places = {label: place for place, label in enumerate(setting.labels)}
        batch = reading.collate(rows, setting)
        if setting.facts["several"]:
            given = torch.zeros(len(rows), len(places))
            for index, row in enumerate(rows):
                given[index, [places[label] for label in row.target]] = 1.0
            return {**batch, "labels": given}
        return {**batch, "labels": torch.tensor([places[row.target[0]] for row in rows])}

    def loss(
        self, model: Any, batch: dict[str, torch.Tensor], setting: Setting, predictions: list[Any] | None = None
    ) -> torch.Tensor:
        """Cross entropy; with several labels the mean over them of each one's own. Appends each row's probabilities."""
        import torch

        logits = reading.judged(model, batch)
        scale = None
        if setting.params.balance:
            scale = torch.tensor(weights(setting.labels, setting.facts), device=logits.device)
        functional = torch.nn.functional
        if setting.facts["several"]:
            if predictions is not None:
                predictions += logits.sigmoid().tolist()
            losses = functional.binary_cross_entropy_with_logits(
                logits, batch["labels"], pos_weight=scale, reduction="none"
            )
            return losses.mean(1).sum()
        if predictions is not None:
            predictions += logits.softmax(1).tolist()
        return functional.cross_entropy(logits, batch["labels"], weight=scale, reduction="sum")

    def score(self, loss: float, predictions: list[Any], rows: Sequence[Row], setting: Setting) -> Scores:
        from jobs.tasks import measures

        given = [row.target for row in rows]
        chosen = [_chosen(values, setting) for values in predictions]
        if setting.facts["several"]:
            values, details = measures.several_labels(given, chosen, setting.labels)
        else:
            values, details = measures.one_label([g[0] for g in given], [c[0] for c in chosen], setting.labels)
        details["samples"] = [
            {
                "row": row.number,
                "text": reading.sample_text(row, setting),
                "expected": ", ".join(row.target),
                "predicted": ", ".join(chosen[place]),
                "confidence": round(max(predictions[place]), 4),
            }
            for place, row in reading.by_number(rows, setting)
        ]
        return Scores(loss, values, details)

    def predict(self, model: Any, inputs: Sequence[dict[str, str]], setting: Setting) -> list[Prediction]:
        predictions = reading.outputs(model, inputs, setting, self.cut)
        scores = predictions.sigmoid() if setting.facts["several"] else predictions.softmax(1)
        return [_prediction(row, setting) for row in scores.tolist()]

    def baseline(self, setting: Setting) -> Prediction | None:
        rows, counts = setting.facts["rows"], setting.facts["counts"]
        return _prediction([counts.get(label, 0) / max(1, rows) for label in setting.labels], setting)


def weights(labels: Sequence[str], facts: dict[str, Any]) -> list[float]:
    """How much each label counts in the loss. One label a text: as scikit-learn's "balanced", whose mean over the rows
    is 1. Several: how many rows lack it for each that has it."""
    rows, counts = facts["rows"], facts["counts"]
    if facts["several"]:
        return [min(_MOST_WEIGHT, (rows - counts[label]) / counts[label]) for label in labels]
    return [min(_MOST_WEIGHT, rows / (len(counts) * counts[label])) for label in labels]


def _chosen(probabilities: Sequence[float], setting: Setting) -> list[str]:
    if setting.facts["several"]:
        return [label for label, p in zip(setting.labels, probabilities, strict=True) if p >= _CHOSEN_AT]
    return [setting.labels[max(range(len(setting.labels)), key=lambda place: probabilities[place])]]


def _prediction(probabilities: Sequence[float], setting: Setting) -> Labels:
    scored = [LabelScore(label=label, probability=p) for label, p in zip(setting.labels, probabilities, strict=True)]
    scored.sort(key=lambda item: -item.probability)
    return Labels(labels=tuple(scored), chosen=tuple(_chosen(probabilities, setting)))
