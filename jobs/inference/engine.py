"""One base model answering: batches of rows that are decoded together, a step at a time.

A batch holds the panes of one request. Whoever drives the engine (jobs.inference.child) steps several batches in turn,
so that two people wait for each other's steps, never for each other's answers. A row's answer depends on its request
alone: batches are never merged, so the same request gives the same tokens on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from jobs.data.rendering import end_tokens
from jobs.data.templates import of_adapter
from jobs.errors import UserError
from jobs.inference.adapters import Adapters, Group, together
from jobs.inference.draw import draw, generator
from jobs.inference.load import Loaded
from jobs.inference.packed import pack
from jobs.inference.protocol import Finish, More, Row
from jobs.inference.text import GrowingText, prompt_ids

_CHUNK = 256  # prompt tokens a step: a long prompt must not keep the other batches waiting


class _Answer:
    """One row while it is being answered."""

    def __init__(
        self, index: int, row: Row, ids: list[int], room: int, text: GrowingText, ends: frozenset[int]
    ) -> None:
        self.index = index
        self.ids = ids
        self.sampling = row.sampling
        self.longest = min(row.sampling.max_tokens, room)
        self.text = text
        self.ends = ends  # tokens after which it is over
        self.random = generator(row.sampling.seed)
        self.tokens = 0
        self.finish: Finish | None = None


class Batch:
    """Rows answered together. `step` until `done`."""

    def __init__(self, engine: Engine, group: Group, answers: list[_Answer]) -> None:
        self._engine, self._group, self._answers = engine, group, answers
        self._started = time.monotonic()
        self._cache = DynamicCache(config=engine.loaded.model.config)
        device = engine.loaded.device
        width = max(len(answer.ids) for answer in answers)
        self._prompt = torch.zeros(len(answers), width, dtype=torch.long)
        mask = torch.zeros(len(answers), width, dtype=torch.long)
        for number, answer in enumerate(answers):  # padded on the left: every row's next token is the last column
            self._prompt[number, width - len(answer.ids) :] = torch.tensor(answer.ids)
            mask[number, width - len(answer.ids) :] = 1
        self._prompt = self._prompt.to(device)
        # Without padding the model needs no mask, and is quicker for it.
        self._mask = None if bool(mask.all()) else mask.to(device)
        self._read = 0  # columns of the prompt that are in the cache

    @property
    def peft(self) -> Any:
        """The PEFT adapter it needs attached, or None where it goes through the stacked layers."""
        return self._group.peft

    @property
    def done(self) -> bool:
        return not self._answers

    @torch.inference_mode()
    def step(self) -> list[More]:
        """Read a piece of the prompt, or draw one token for every row; what the rows said by it."""
        if self._read < self._prompt.shape[1]:
            logits = self._read_prompt()
            if logits is None:
                return []
        else:
            logits = self._forward(self._next, self._read + self._steps)
            self._steps += 1
        said, tokens = [], []
        for answer, row in zip(self._answers, logits, strict=True):
            token = draw(row, answer.sampling, answer.random)
            tokens.append(token)
            said.append(self._take(answer, token))
        keep = [number for number, answer in enumerate(self._answers) if answer.finish is None]
        if len(keep) < len(self._answers):
            self._shrink(keep)
        self._next = torch.tensor([[tokens[number]] for number in keep], device=self._prompt.device)
        return said

    def stop(self) -> list[More]:
        """End every row with what it has."""
        said = []
        for answer in self._answers:
            answer.finish = "stopped"
            said.append(self._more(answer, answer.text.rest()))
        self._answers = []
        return said

    _steps = 0  # tokens drawn and in the cache
    _next: torch.Tensor  # the tokens drawn last, [rows, 1]

    def _read_prompt(self) -> torch.Tensor | None:
        """The logits after the prompt; None while there is more of it. A PEFT adapter reads it in one piece."""
        end = self._prompt.shape[1] if self._group.peft else min(self._prompt.shape[1], self._read + _CHUNK)
        logits = self._forward(self._prompt[:, self._read : end], self._read)
        self._read = end
        return logits if end == self._prompt.shape[1] else None

    def _forward(self, ids: torch.Tensor, past: int) -> torch.Tensor:
        """Logits [rows, vocabulary] of the last column; `past` columns are in the cache."""
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        if self._mask is not None:
            until = past + ids.shape[1]
            if self._mask.shape[1] < until:
                ones = self._mask.new_ones(len(self._mask), 64)
                self._mask = torch.cat((self._mask, ones), dim=1)
            mask = self._mask[:, :until]
            inputs["attention_mask"] = mask
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        if past or not self._group.peft:
            inputs["past_key_values"] = self._cache
            inputs["logits_to_keep"] = 1
        out = self._engine.adapters.forward(self._group, first=past == 0, **inputs)
        self._cache = out.past_key_values
        return out.logits[:, -1]

    def _take(self, answer: _Answer, token: int) -> More:
        if token in answer.ends:
            answer.finish = "end"
            return self._more(answer, answer.text.rest())
        answer.tokens += 1
        text = answer.text.push(token)
        if answer.tokens >= answer.longest:
            answer.finish = "length"
            text += answer.text.rest()
        return self._more(answer, text)

    def _more(self, answer: _Answer, text: str) -> More:
        seconds = time.monotonic() - self._started
        return More(row=answer.index, text=text, tokens=answer.tokens, seconds=seconds, finish=answer.finish)

    def _shrink(self, keep: list[int]) -> None:
        """Rows that ended leave the batch, so that nothing is computed for them."""
        self._answers = [self._answers[number] for number in keep]
        if not keep:
            return
        indices = torch.tensor(keep, device=self._prompt.device)
        self._cache.batch_select_indices(indices)
        if self._mask is not None:
            self._mask = self._mask[indices]
        self._group = self._group.keep(keep)


class Engine:
    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._about = loaded.about | {"packed": pack(loaded.model)}
        self.adapters = Adapters(loaded)
        self._generation = loaded.model.generation_config
        self.ends = end_tokens(loaded.tokenizer, self._generation)  # where the model's own template is used

    def open(self, rows: Sequence[Row]) -> tuple[list[Batch], dict[str, Any]]:
        """The batches that answer these rows, and what a sample must keep to be made again.

        Raises UserError where a conversation is too long or an adapter cannot be used.
        """
        adapters = [self.adapters.get(row.adapter) if row.adapter else None for row in rows]
        answers = [
            self._answer(index, row, adapter.positions if adapter else 0)
            for index, (row, adapter) in enumerate(zip(rows, adapters, strict=True))
        ]
        batches = [Batch(self, group, [answers[index] for index in members]) for group, members in together(adapters)]
        return batches, self._about | {"adapters": [a.fingerprint if a else None for a in adapters]}

    def _answer(self, index: int, row: Row, taken: int) -> _Answer:
        """`taken`: positions that its adapter stands on."""
        tokenizer = self.tokenizer_for(row)
        ids = prompt_ids(tokenizer, row.messages)
        room = self.loaded.max_length - taken - len(ids)
        if room < 1:
            raise UserError(
                f"The conversation is {len(ids)} tokens long, but {self.loaded.name} takes at most "
                f"{self.loaded.max_length - taken}. Start a new chat, or shorten the prompt."
            )
        if not ids:
            raise UserError("The prompt is empty. Write something for the model to continue.")
        ends = self.ends if tokenizer is self.loaded.tokenizer else end_tokens(tokenizer, self._generation)
        return _Answer(index, row, ids, room, GrowingText(tokenizer), ends)

    def tokenizer_for(self, row: Row) -> PreTrainedTokenizerBase:
        """With the chat template that the row's adapter was trained with."""
        return of_adapter(self.loaded.tokenizer, row.adapter) if row.adapter else self.loaded.tokenizer
