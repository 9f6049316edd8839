"""Extractive question answering: the answer as it stands in a passage (SQuAD: Rajpurkar et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from jobs.data.columns import Mapping, Shape
from jobs.data.values import Extract, extract_of
from jobs.errors import RowProblem, UserError
from jobs.frozen import Frozen
from jobs.shape import ModelShape
from jobs.tasks import reading, sizes
from jobs.tasks.base import Encoded, Scores, Task
from jobs.tasks.predictions import FoundAnswer, Prediction

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.data import Row
    from jobs.training.objective import Setting

_OUTPUTS = 2  # where the answer starts, and where it ends
_LEAST_ROOM = 8  # tokens of a passage
_SAID = 200  # characters of an answer that a preview shows


class Answers(Task):
    name = "answers"
    label = "Question answering in a text"
    help = "Teaches the model to find the answer to a question in a passage, word for word, or to say there is none."
    order = 70
    shapes = (Shape.EXTRACTIVE,)
    head = "span"
    talks = False
    inputs = {"question": True, "context": True}  # noqa: RUF012 - a class variable, as the base declares it
    measures = {  # noqa: RUF012
        "exact_match": "Share of answers that are right but for case, punctuation and articles, as SQuAD counts.",
        "f1": "How many words an answer shares with the right one, as SQuAD counts.",
    }

    weighing = frozenset({"longest_answer"})

    class Params(Frozen):
        longest_answer: int = Field(
            30,
            ge=1,
            le=512,
            title="Longest answer",
            description="Tokens that an answer may have when the model is asked; training takes longer ones, too.",
        )

    def head_parameters(self, params: Any, shape: ModelShape, labels: int) -> int:
        return sizes.token_head(shape, _OUTPUTS)

    def encode_batch(
        self, rows: Sequence[dict[str, Any]], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> list[Encoded | RowProblem]:
        given: list[Extract | RowProblem] = []
        for row in rows:
            try:
                given.append(extract_of(row, mapping))
            except RowProblem as problem:
                given.append(problem)
        good = [item for item in given if isinstance(item, Extract)]
        tokens = reading.tokenise(tokenizer, [item.question for item in good], [item.context for item in good])
        results: list[Encoded | RowProblem] = []
        for item in given:
            try:
                results.append(item if isinstance(item, RowProblem) else _located(item, *next(tokens), tokenizer))
            except RowProblem as problem:
                results.append(problem)
        return results

    def cut(self, encoded: Encoded, max_length: int) -> Encoded:
        """Raises RowProblem where the answer does not lie in what is left."""
        if len(encoded.input_ids) <= max_length:
            return encoded
        room = max_length - reading.closing_tokens(encoded)
        if encoded.target["from"] >= room:
            raise RowProblem(f"its question leaves no room for the passage ({encoded.target['from']:,} tokens)")
        if encoded.target["end"] is not None and encoded.target["end"] >= room:
            raise RowProblem(
                f"its answer lies beyond the maximum length (it ends at token {encoded.target['end']:,}; "
                f"{max_length:,} are used)"
            )
        return replace(reading.cut(encoded, max_length), target={**encoded.target, "to": room})

    def target_text(self, encoded: Encoded, params: Any) -> str:
        answers = encoded.target["answers"]
        return str(answers[0])[:_SAID] if answers else "no answer"

    def target_labels(self, encoded: Encoded | Row) -> Sequence[str]:
        return ("answer",) if encoded.target["answers"] else ("no answer",)

    def check_labels(self, params: Any, counts: dict[str, int], rows: int) -> tuple[list[str], list[str]]:
        without = counts.get("no answer", 0)
        if without and without == sum(counts.values()):
            return ["No row has an answer: there is nothing to find. Choose another column for the answers."], []
        if without:
            return [], [f"{without:,} rows have no answer in their passage: the model learns to say so."]
        return [], ["Every row has an answer, so the model will always name one, also where the passage has none."]

    def facts(self, rows: Iterable[Row], params: Any) -> dict[str, Any]:
        """Whether "no answer" is one."""
        return {"unanswerable": any(not row.target["answers"] for row in rows)}

    def head_config(self, setting: Setting) -> dict[str, Any]:
        return {"num_labels": _OUTPUTS, "ignore_mismatched_sizes": True}

    def items(self, row: Row) -> int:
        return 1

    def collate(self, rows: Sequence[Row], setting: Setting) -> dict[str, torch.Tensor]:
        """`allowed`: [rows, tokens], where an answer may start and end; `passage`: [rows, 3], its first token, the one
        after it, and the one that stands for "no answer" (-1 where that is none); `start` and `end`: [rows]."""
        import torch

        batch = reading.collate(rows, setting)
        allowed = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
        passage = torch.full((len(rows), 3), -1)
        for index, row in enumerate(rows):
            passage[index, 0], passage[index, 1] = row.target["from"], row.target["to"]
            allowed[index, row.target["from"] : row.target["to"]] = True
            if setting.facts["unanswerable"]:
                passage[index, 2] = _nothing(row)
                allowed[index, _nothing(row)] = True
        places = [_nothing(row) if row.target["start"] is None else row.target["start"] for row in rows]
        ends = [_nothing(row) if row.target["end"] is None else row.target["end"] for row in rows]
        return {
            **batch,
            "allowed": allowed,
            "passage": passage,
            "start": torch.tensor(places),
            "end": torch.tensor(ends),
        }

    def loss(
        self, model: Any, batch: dict[str, torch.Tensor], setting: Setting, predictions: list[Any] | None = None
    ) -> torch.Tensor:
        """The mean of the cross entropies of start and end. Appends each row's (start, end, score, confidence)."""
        import torch

        starts, ends = _logits(model, batch)
        if predictions is not None:
            predictions += [
                _best(starts[row], ends[row], batch["passage"][row].tolist(), setting) for row in range(len(starts))
            ]
        cross_entropy = torch.nn.functional.cross_entropy
        both = cross_entropy(starts, batch["start"], reduction="sum") + cross_entropy(
            ends, batch["end"], reduction="sum"
        )
        return both / 2

    def score(self, loss: float, predictions: list[Any], rows: Sequence[Row], setting: Setting) -> Scores:
        from jobs.tasks import measures

        tokens = reading.tokenise(
            setting.tokenizer, [row.target["question"] for row in rows], [row.target["context"] for row in rows]
        )
        said = []
        for row, (start, end, _, _), (encoded, _) in zip(rows, predictions, tokens, strict=True):
            inside = row.target["from"] <= start and end < row.target["to"]
            begin, stop = _characters(encoded, start, end) if inside else (0, 0)
            said.append(encoded.text[begin:stop])
        values, details = measures.answers([row.target["answers"] for row in rows], said)
        details["samples"] = [
            {
                "row": row.number,
                "text": reading.sample_text(row, setting),
                "expected": " / ".join(dict.fromkeys(row.target["answers"])) or "no answer",
                "predicted": said[place] or "no answer",
                "confidence": round(predictions[place][3], 4),
            }
            for place, row in reading.by_number(rows, setting)
        ]
        return Scores(loss, values, details)

    def predict(self, model: Any, inputs: Sequence[dict[str, str]], setting: Setting) -> list[Prediction]:
        """A passage longer than the maximum length is read in overlapping pieces; the best answer counts."""
        questions = [reading.given_text(given, "question") for given in inputs]
        contexts = [reading.given_text(given, "context") for given in inputs]
        tokens = reading.tokenise(setting.tokenizer, questions, contexts)
        found: list[Prediction] = []
        for question, context, (encoded, first) in zip(questions, contexts, tokens, strict=True):
            best: tuple[tuple[bool, float], tuple[int, int, float, float], Encoded] | None = None
            for window in _windows(
                _located(Extract(question, context, ()), encoded, first, setting.tokenizer), setting.max_length
            ):
                batch = reading.on_device(self.collate([reading.as_row(window)], setting), model)
                starts, ends = _logits(model, batch)
                answer = _best(starts[0], ends[0], batch["passage"][0].tolist(), setting)
                # "No answer" only where every piece says so: each of them lacks most of the passage.
                rank = answer[0] >= window.target["from"] and answer[0] < window.target["to"], answer[2]
                if best is None or rank > best[0]:
                    best = rank, answer, window
            assert best is not None
            _, (start, end, _, confidence), window = best
            begin, stop = (place - len(question) - 1 for place in _characters(window, start, end))
            if stop <= begin:
                found.append(FoundAnswer(text="", start=None, end=None, confidence=confidence))
            else:
                found.append(FoundAnswer(text=context[begin:stop], start=begin, end=stop, confidence=confidence))
        return found


def _located(item: Extract, encoded: Encoded, first: int, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """With where the passage lies among the tokens, and the first answer in it; both None where there is none.

    "No answer" is said at an encoder's opening token. A decoder's first token has seen nothing of the passage: there it
    is said at an end token, which is added.
    """
    after = len(encoded.input_ids) - reading.closing_tokens(encoded)
    opens = tokenizer.cls_token_id is not None and encoded.input_ids[0] == tokenizer.cls_token_id
    if not opens and tokenizer.eos_token_id is not None and after == len(encoded.input_ids):
        encoded = replace(
            encoded,
            input_ids=[*encoded.input_ids, tokenizer.eos_token_id],
            offsets=[*encoded.offsets, (0, 0)],
            types=[*encoded.types, 1] if encoded.types else None,
        )
    start = end = None
    if item.answers:
        text, begins = item.answers[0]
        begins += len(item.question) + 1
        inside = [
            place
            for place in range(first, after)
            if encoded.offsets[place][0] < begins + len(text) and encoded.offsets[place][1] > begins
        ]
        if not inside:
            raise RowProblem(f"the model's tokenizer makes nothing of its answer ({text[:60]!r})")
        start, end = inside[0], inside[-1]
    return replace(
        encoded,
        trained=[
            start is not None and end is not None and start <= place <= end for place in range(len(encoded.input_ids))
        ],
        target={
            "from": first,
            "to": after,
            "start": start,
            "end": end,
            "nothing": 0 if opens else -1,
            "question": item.question,
            "context": item.context,
            "answers": [text for text, _ in item.answers],
        },
    )


def _nothing(row: Row) -> int:
    return int(row.target["nothing"]) % len(row.input_ids)


def _logits(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of start and end, [rows, tokens], with nothing outside the passage to choose."""
    output = reading.read(model, batch)
    starts, ends = (
        reading.per_token(logits, batch).float().masked_fill(~batch["allowed"], float("-inf"))
        for logits in (output.start_logits, output.end_logits)
    )
    return starts, ends


def _best(
    starts: torch.Tensor, ends: torch.Tensor, passage: list[int], setting: Setting
) -> tuple[int, int, float, float]:
    """(start, end, score, confidence) of the most probable answer that ends after it starts. `passage`: see `collate`;
    "no answer" starts and ends outside."""
    import torch

    first, after, nothing = passage
    longest = setting.params.longest_answer
    beyond = torch.full((longest - 1,), float("-inf"), device=ends.device)
    together = starts[first:after, None] + torch.cat((ends[first:after], beyond)).unfold(0, longest, 1)
    start, more = divmod(int(together.argmax()), longest)
    score, chosen = float(together[start, more]), (first + start, first + start + more)
    if nothing >= 0 and float(starts[nothing] + ends[nothing]) >= score:
        score, chosen = float(starts[nothing] + ends[nothing]), (nothing, nothing)
    confidence = float(starts.softmax(0)[chosen[0]] * ends.softmax(0)[chosen[1]])
    return *chosen, score, confidence


def _characters(encoded: Encoded, start: int, end: int) -> tuple[int, int]:
    """The answer's place in the encoded text, without white space around it; empty for "no answer"."""
    if encoded.offsets[end][1] == 0:
        return 0, 0  # a special token
    begin, stop = encoded.offsets[start][0], encoded.offsets[end][1]
    said = encoded.text[begin:stop]
    return begin + len(said) - len(said.lstrip()), begin + len(said.rstrip())


def _windows(encoded: Encoded, max_length: int) -> Iterable[Encoded]:
    """The question with the whole passage, or with pieces of it, each half of which the next one repeats."""
    ids, target = encoded.input_ids, encoded.target
    first, after = target["from"], target["to"]
    room = max_length - (len(ids) - (after - first))
    if after - first <= room:
        yield encoded
        return
    if room < _LEAST_ROOM:
        raise UserError(
            f"The question is too long: of the {max_length:,} tokens that this model was trained with, "
            f"{max(room, 0)} are left for the passage. Shorten it."
        )
    begin = first
    while True:
        stop = min(begin + room, after)
        kept = [*range(first), *range(begin, stop), *range(after, len(ids))]
        yield replace(
            encoded,
            input_ids=[ids[place] for place in kept],
            offsets=[encoded.offsets[place] for place in kept],
            trained=[False] * len(kept),
            types=[encoded.types[place] for place in kept] if encoded.types else None,
            target={**target, "to": first + stop - begin},
        )
        if stop == after:
            return
        begin += max(1, room // 2)
