"""The run's fixed prompts, answered by base and tuned model: greedy, short, one batch each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.data.rendering import end_tokens, prompt_text
from jobs.errors import RowProblem, UserError
from jobs.events import PromptAnswer
from jobs.training.load import Device, pad_token_id

_LONGEST_PROMPT = 1_024  # tokens; what is longer keeps its end
MAX_NEW_TOKENS = 48


class FixedPrompts:
    """Answers the same prompts again and again. The base answers once: when the tuned model first does, or when asked.

    Training must not notice: mode and random state are as before.
    """

    def __init__(self, model: Any, tokenizer: Any, prompts: Sequence[str], as_chat: bool, device: Device) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = tuple(prompts)
        self._as_chat = as_chat
        self._tokens = [self._encode(prompt)[-_LONGEST_PROMPT:] for prompt in prompts]
        self._device = device
        self._base: list[str] | None = None

    def __bool__(self) -> bool:
        return bool(self._prompts)

    def answer_as_base(self) -> None:
        """The untrained model's answers, for a run that will leave no base to ask."""
        with self._undisturbed():
            self._base = self._generate()

    def answers(self) -> tuple[PromptAnswer, ...]:
        with self._undisturbed():
            tuned = self._generate()
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
        import torch
        from transformers import GenerationConfig

        pad = pad_token_id(self._tokenizer)
        longest = max(map(len, self._tokens))
        input_ids = torch.full((len(self._tokens), longest), pad)
        mask = torch.zeros((len(self._tokens), longest), dtype=torch.long)
        for index, tokens in enumerate(self._tokens):  # on the left: answers begin at one place
            input_ids[index, longest - len(tokens) :] = torch.tensor(tokens)
            mask[index, longest - len(tokens) :] = 1
        output = self._model.generate(
            input_ids=input_ids.to(self._device.name),
            attention_mask=mask.to(self._device.name),
            generation_config=GenerationConfig(
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                use_cache=True,
                pad_token_id=pad,
                eos_token_id=sorted(end_tokens(self._tokenizer, self._model.generation_config)) or None,
            ),
        )
        texts = self._tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
        return [text.strip() if self._as_chat else text for text in texts]

    def _encode(self, prompt: str) -> list[int]:
        if self._as_chat:
            try:
                text = prompt_text(self._tokenizer, [{"role": "user", "content": prompt}])
            except RowProblem as problem:
                raise UserError(f"The fixed prompt {prompt[:80]!r} cannot be asked: {problem}.") from problem
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self._tokenizer(prompt)["input_ids"]) or [pad_token_id(self._tokenizer)]
