"""The run's fixed prompts, answered by base and tuned model: greedy, short, one batch each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.data.rendering import prompt_text
from jobs.errors import RowProblem, UserError
from jobs.events import PromptAnswer
from jobs.training.load import Device, pad_token_id
from jobs.training.rows import Row
from jobs.training.writing import write

_LONGEST_PROMPT = 1_024  # tokens; what is longer keeps its end
MAX_NEW_TOKENS = 48
_TRIED = 4  # tokens
_SAMPLED = 1_000  # rows whose answers' lengths stand for all rows'
_MOST_ROWS = 0.9


class FixedPrompts:
    """Answers the same prompts again and again. The base answers once: when the tuned model first does, or when asked.

    Training must not notice: mode and random state are as before. `seconds`: what the tuned model's answers take, 0
    until they were tried or given. `expected`: tokens that its first ones are taken to have (`expected_tokens`).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[str],
        as_chat: bool,
        device: Device,
        expected: int = MAX_NEW_TOKENS,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = tuple(prompts)
        self._as_chat = as_chat
        self._tokens = [self._encode(prompt)[-_LONGEST_PROMPT:] for prompt in prompts]
        self._device = device
        self._base: list[str] | None = None
        self._tried = False
        self._expected = expected
        self.seconds = self._base_seconds = 0.0

    def __bool__(self) -> bool:
        return bool(self._prompts)

    @property
    def untried(self) -> bool:
        return bool(self._prompts) and not self._tried

    @property
    def seconds_to_come(self) -> float:
        """What the next `answers` will take."""
        return self.seconds + (self._base_seconds if self._base is None else 0.0)

    def try_out(self) -> None:
        """Find out `seconds` from the answers' first few tokens."""
        self._tried = True
        took = []
        with self._undisturbed():
            for tokens in (1, 1, _TRIED):  # the first wakes libraries up
                began = time.perf_counter()
                write(self._model, self._tokenizer, self._tokens, tokens)
                took.append(time.perf_counter() - began)
        a_token = max(0.0, took[2] - took[1]) / (_TRIED - 1)
        self.seconds = took[1] + (self._expected - 1) * a_token
        self._base_seconds = took[1] + (MAX_NEW_TOKENS - 1) * a_token  # it knows nothing of short answers

    def answer_as_base(self) -> None:
        """The untrained model's answers, for a run that will leave no base to ask."""
        with self._undisturbed():
            self._base = self._generate()

    def answers(self) -> tuple[PromptAnswer, ...]:
        with self._undisturbed():
            began = time.perf_counter()
            tuned = self._generate()
            self._tried, self.seconds = True, time.perf_counter() - began
            if self._base is None:
                with self._model.disable_adapter():
                    self._base = self._generate()
        return tuple(
            PromptAnswer(prompt=prompt, base=base, tuned=answer)
            for prompt, base, answer in zip(self._prompts, self._base, tuned, strict=True)
        )

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        import torch

        training = self._model.training
        self._model.eval()
        devices = [self._device.name] if self._device.is_cuda else []
        try:
            with torch.random.fork_rng(devices), torch.inference_mode(), self._device.autocast():
                yield
        finally:
            self._model.train(training)

    def _generate(self) -> list[str]:
        texts = write(self._model, self._tokenizer, self._tokens, MAX_NEW_TOKENS)
        return [text.strip() if self._as_chat else text for text in texts]

    def _encode(self, prompt: str) -> list[int]:
        if self._as_chat:
            try:
                text = prompt_text(self._tokenizer, [{"role": "user", "content": prompt}])
            except RowProblem as problem:
                raise UserError(f"The fixed prompt {prompt[:80]!r} cannot be asked: {problem}.") from problem
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self._tokenizer(prompt)["input_ids"]) or [pad_token_id(self._tokenizer)]


def expected_tokens(rows: Sequence[Row]) -> int:
    """Of a tuned model's answer: as many as a row trains, with all its turns; nine rows of ten have no more."""
    counts = sorted(int(row.trained.sum()) for row in rows[:: max(1, len(rows) // _SAMPLED)])
    return max(1, min(MAX_NEW_TOKENS, counts[int(_MOST_ROWS * (len(counts) - 1))]))
