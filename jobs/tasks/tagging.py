"""Token classification: a tag for each word, such as the BIO tags of names and places."""

from __future__ import annotations

import bisect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from jobs.data.columns import Mapping, Shape
from jobs.data.values import tagged
from jobs.errors import RowProblem, UserError
from jobs.frozen import Frozen
from jobs.shape import ModelShape
from jobs.tasks import reading, sizes
from jobs.tasks.base import Encoded, Scores, Task
from jobs.tasks.predictions import Prediction, Span, Spans

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.data import Row
    from jobs.training.objective import Setting

MOST_TAGS = 1_000
OUTSIDE = "O"
# How a text without words of its own is parted: as treebanks do, punctuation apart, "don't" and "well-kept" whole.
_WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")


class Tagging(Task):
    name = "tagging"
    label = "Token classification"
    help = "Teaches the model to mark words: names, places, dates, products. Each word has a tag, as in CoNLL data."
    order = 60
    shapes = (Shape.TAGGED,)
    head = "token"
    talks = False
    inputs = {"text": True}  # noqa: RUF012 - a class variable, as the base declares it
    measures = {  # noqa: RUF012
        "entity_f1": "F1 of whole entities, by seqeval: right only with the right ends and the right type.",
        "entity_precision": "Share of the entities found that are right.",
        "entity_recall": "Share of the right entities that are found.",
        "accuracy": "Share of words with the right tag.",
        "macro_f1": "Instead of the entities' measures where tags are not BIO's: the mean of each tag's F1.",
    }

    class Params(Frozen):
        tag_names: str = Field(
            "",
            max_length=10_000,
            title="Names of numbered tags",
            description="Where the data has numbers for tags: their names from 0 on, with commas: O, B-PER, I-PER, ...",
        )

    def check_data(self, params: Params, mapping: Mapping, has_chat_template: bool) -> list[str]:
        problems = super().check_data(params, mapping, has_chat_template)
        names = _names(params)
        if len(set(names)) < len(names):
            problems.append("You set Names of numbered tags with one name twice. Each number needs its own.")
        return problems

    def head_parameters(self, params: Any, shape: ModelShape, labels: int) -> int:
        return sizes.token_head(shape, labels)

    def encode_batch(
        self, rows: Sequence[dict[str, Any]], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Params
    ) -> list[Encoded | RowProblem]:
        names = _names(params)
        given: list[tuple[list[str], list[str]] | RowProblem] = []
        for row in rows:
            try:
                words, tags = tagged(row, mapping)
                given.append((words, [_named(tag, names) for tag in tags]))
            except RowProblem as problem:
                given.append(problem)
        good = [item for item in given if not isinstance(item, RowProblem)]
        encoded = _encode(tokenizer, good)
        return [item if isinstance(item, RowProblem) else next(encoded) for item in given]

    def cut(self, encoded: Encoded, max_length: int) -> Encoded:
        used = reading.cut(encoded, max_length)
        if used is encoded:
            return encoded
        closing = reading.closing_tokens(encoded)
        text = max_length - closing
        return replace(used, target=encoded.target[:text] + encoded.target[len(encoded.target) - closing :])

    def token_tags(self, encoded: Encoded) -> Sequence[str]:
        return encoded.target

    def target_labels(self, encoded: Encoded | Row) -> Sequence[str]:
        return [tag for tag in encoded.target if tag]

    def check_labels(self, params: Any, counts: dict[str, int], rows: int) -> tuple[list[str], list[str]]:
        if len(counts) == 1:
            return [f"Every word has the tag {next(iter(counts))!r}: there is nothing to mark."], []
        if len(counts) > MOST_TAGS:
            return [f"There are {len(counts):,} different tags; Graft takes at most {MOST_TAGS:,}."], []
        notes = []
        if counts and all(tag.isdecimal() for tag in counts):
            notes.append(
                "The tags are numbers. Give Names of numbered tags, so that whole entities are measured and shown."
            )
        entities = {tag.partition("-")[2] for tag in counts if "-" in tag}
        if rare := sorted(kind for kind in entities if counts.get(f"B-{kind}", counts.get(f"I-{kind}", 0)) == 1):
            notes.append(f"These stand only once in the data: {', '.join(rare[:5])}. Once is too little to learn from.")
        return [], notes

    def labels(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """O first, the others in natural order. Raises UserError where there is nothing to tell apart."""
        found = {tag for row in rows for tag in row.target if tag}
        if len(found) < 2:
            raise UserError("Every word has the same tag: there is nothing to mark. Choose another column.")
        return tuple(
            sorted(found, key=lambda tag: (tag != OUTSIDE, reading.natural(tag.partition("-")[2] or tag), tag))
        )

    def facts(self, rows: Iterable[Row], params: Any) -> dict[str, Any]:
        """The most frequent tag."""
        counts: dict[str, int] = {}
        for row in rows:
            for tag in row.target:
                if tag:
                    counts[tag] = counts.get(tag, 0) + 1
        return {"most_frequent": max(counts, key=lambda tag: (counts[tag], tag))}

    def head_config(self, setting: Setting) -> dict[str, Any]:
        names = dict(enumerate(setting.labels))
        return {
            "id2label": names,
            "label2id": {label: number for number, label in names.items()},
            "ignore_mismatched_sizes": True,
        }

    def items(self, row: Row) -> int:
        return int(row.trained.sum())

    def collate(self, rows: Sequence[Row], setting: Setting) -> dict[str, torch.Tensor]:
        """`labels`: [rows, tokens], the tag's place at each word's first token."""
        import torch

        from jobs.training.data import IGNORED

        places = {label: place for place, label in enumerate(setting.labels)}
        batch = reading.collate(rows, setting)
        labels = torch.full(batch["input_ids"].shape, IGNORED)
        for index, row in enumerate(rows):
            known = [places.get(tag, IGNORED) for tag in row.target]
            labels[index, : len(known)] = torch.tensor(known)
        return {**batch, "labels": labels}

    def loss(
        self, model: Any, batch: dict[str, torch.Tensor], setting: Setting, predictions: list[Any] | None = None
    ) -> torch.Tensor:
        """Appends for each row its words' (place of the tag, probability)."""
        import torch

        from jobs.training.data import IGNORED

        logits = reading.per_token(reading.read(model, batch).logits, batch).float()
        if predictions is not None:
            best = logits.softmax(-1).max(-1)
            for index, row in enumerate(batch["labels"] != IGNORED):
                predictions.append(
                    list(zip(best.indices[index, row].tolist(), best.values[index, row].tolist(), strict=True))
                )
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def score(self, loss: float, predictions: list[Any], rows: Sequence[Row], setting: Setting) -> Scores:
        from jobs.tasks import measures

        given = [[tag for tag in row.target if tag] for row in rows]
        chosen = [[setting.labels[place] for place, _ in words] for words in predictions]
        values, details = measures.tags(given, chosen, setting.labels)
        details["samples"] = [
            _sample(row, given[place], chosen[place], [p for _, p in predictions[place]], setting)
            for place, row in reading.by_number(rows, setting)
        ]
        return Scores(loss, values, details)

    def predict(self, model: Any, inputs: Sequence[dict[str, str]], setting: Setting) -> list[Prediction]:
        """A text longer than the maximum length is read in pieces."""
        found: list[Prediction] = []
        for given in inputs:
            text = reading.given_text(given, "text")
            words = [match.span() for match in _WORD.finditer(text)]
            said = self._say_all(model, [text[start:end] for start, end in words], setting)
            tags, sure = [tag for tag, _ in said], [confidence for _, confidence in said]
            found.append(Spans(text=text, spans=tuple(spans(text, words, tags, sure, setting.labels))))
        return found

    def _say_all(self, model: Any, words: list[str], setting: Setting) -> list[tuple[str, float]]:
        """(tag, probability) of each word, from the piece that has most of the text around it."""
        said = [(OUTSIDE, 1.0)] * len(words)
        around = [-1] * len(words)  # words between it and its piece's nearer end
        for first, after in _pieces(setting, words):
            for word, one in enumerate(self._say(model, words[first:after], setting), start=first):
                before = len(words) if first == 0 else word - first
                behind = len(words) if after == len(words) else after - 1 - word
                if min(before, behind) > around[word]:
                    said[word], around[word] = one, min(before, behind)
        return said

    def _say(self, model: Any, words: list[str], setting: Setting) -> list[tuple[str, float]]:
        """(tag, probability) of each word; a word that the tokenizer makes nothing of is outside."""
        encoded = next(_encode(setting.tokenizer, [(words, [str(place) for place in range(len(words))])]))
        batch = reading.on_device(reading.collate([reading.as_row(encoded)], setting), model)
        logits = reading.per_token(reading.read(model, batch).logits, batch)[0].float().softmax(-1).max(-1)
        said = [(OUTSIDE, 1.0)] * len(words)
        for place, word in enumerate(encoded.target):
            if word:
                said[int(word)] = (setting.labels[int(logits.indices[place])], float(logits.values[place]))
        return said


def _names(params: Tagging.Params) -> list[str]:
    return [name.strip() for name in params.tag_names.split(",") if name.strip()]


def _named(tag: str, names: list[str]) -> str:
    if not tag.strip():
        raise RowProblem("one of its tags is empty")
    if names and tag.isdecimal():
        if int(tag) >= len(names):
            raise RowProblem(f"its tag has no name among those you set (number {tag})")
        return names[int(tag)]
    return sys.intern(tag.strip())


def _encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[list[str], list[str]]]) -> Iterator[Encoded]:
    """Words with a space between them, as text: what the model has always read. A word's first token carries its tag.

    For tokenizers that part at spaces the tokens are those of `is_split_into_words`; the others keep the spaces that
    belong to their tokens.
    """
    tokens = reading.tokenise(tokenizer, [" ".join(words) for words, _ in rows], [""] * len(rows))
    for (words, tags), (encoded, _) in zip(rows, tokens, strict=True):
        target = [""] * len(encoded.input_ids)
        ends = []  # of each word in the text
        end = -1
        for word in words:
            end += 1 + len(word)
            ends.append(end)
        at, last = 0, -1
        for place, (start, stop) in enumerate(encoded.offsets):
            if start == stop:
                continue  # a special token
            begins = start + 1 if encoded.text[start] == " " and stop > start + 1 else start
            while ends[at] <= begins:
                at += 1
            if at != last:
                target[place], last = tags[at], at
        yield replace(encoded, trained=[bool(tag) for tag in target], target=target)


def _pieces(setting: Setting, words: list[str]) -> list[tuple[int, int]]:
    """(first word, word after the last) of the pieces that the model reads, each half of which the next one repeats.

    One piece where it can read all at once.
    """
    encoded = next(_encode(setting.tokenizer, [(words, [str(place) for place in range(len(words))])]))
    if len(encoded.input_ids) <= setting.max_length:
        return [(0, len(words))]
    room = max(1, setting.max_length - 4)  # special tokens, and what a word costs more at a piece's beginning
    begins = [len(encoded.input_ids)] * (len(words) + 1)  # of each word among the tokens
    for place, word in enumerate(encoded.target):
        if word:
            begins[int(word)] = place
    for word in reversed(
        range(len(words))
    ):  # a word that the tokenizer makes nothing of begins where the next one does
        begins[word] = min(begins[word], begins[word + 1])
    pieces, first = [], 0
    while True:
        after = max(first + 1, bisect.bisect_right(begins, begins[first] + room) - 1)
        pieces.append((first, min(after, len(words))))
        if after >= len(words):
            return pieces
        first += max(1, (after - first) // 2)


def spans(
    text: str, words: Sequence[tuple[int, int]], tags: list[str], sure: Sequence[float], labels: Sequence[str]
) -> Iterator[Span]:
    """Entities where tags are BIO's, else every tagged word. Confidence is the mean of the words' own."""
    from seqeval.metrics.sequence_labeling import get_entities

    from jobs.tasks.measures import marks_entities

    if marks_entities(set(labels)):
        found = get_entities(tags)
    else:
        found = [(tag, place, place) for place, tag in enumerate(tags) if tag != OUTSIDE]
    for tag, first, last in found:
        start, end = words[first][0], words[last][1]
        confidence = sum(sure[first : last + 1]) / (last + 1 - first)
        yield Span(start=start, end=end, text=text[start:end], tag=tag, confidence=round(confidence, 4))


def _sample(row: Row, given: list[str], chosen: list[str], sure: list[float], setting: Setting) -> dict[str, Any]:
    encoded = setting.samples[row.number]
    starts = [
        start + (encoded.text[start] == " " and end > start + 1)
        for (start, end), tag in zip(encoded.offsets, encoded.target, strict=True)
        if tag
    ]
    words = [
        (start, start + len(encoded.text[start:after].rstrip()))
        for start, after in zip(starts, [*starts[1:], len(encoded.text)], strict=True)
    ][: len(given)]
    right = list(spans(encoded.text, words, given, [1.0] * len(given), setting.labels))
    said = list(spans(encoded.text, words, chosen, sure, setting.labels))
    return {
        "row": row.number,
        "text": encoded.text,
        "expected": _words_of(right),
        "predicted": _words_of(said),
        "confidence": min((span.confidence for span in said), default=round(min(sure, default=0.0), 4)),
        "expected_spans": [span.model_dump() for span in right],
        "predicted_spans": [span.model_dump() for span in said],
    }


def _words_of(found: list[Span]) -> str:
    return "; ".join(f"{span.tag}: {span.text}" for span in found) or "nothing"
