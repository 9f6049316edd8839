"""Greedy answers to several prompts in one batch, by decoders and by encoder-decoders: the same for fixed prompts, for
measures and for a playground that is no chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.data.rendering import end_tokens
from jobs.training.load import pad_token_id
from jobs.training.loss import virtual_tokens

_TOGETHER = 16  # prompts in one batch


def write_all(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """As `write`, for any number of prompts, in their order: few at once, those of like length together."""
    found = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(order), _TOGETHER):
        places = order[start : start + _TOGETHER]
        texts = write(model, tokenizer, [prompts[place] for place in places], max_new_tokens)
        for place, text in zip(places, texts, strict=True):
            found[place] = text
    return found


def write(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """What the model writes to each prompt, in one batch, without special tokens. The model must be in eval mode."""
    import torch
    from transformers import GenerationConfig

    pad = pad_token_id(tokenizer)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    reads_first = bool(base.config.is_encoder_decoder)
    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for index, tokens in enumerate(prompts):  # a decoder's on the left: answers begin at one place
        place = slice(0, len(tokens)) if reads_first else slice(longest - len(tokens), longest)
        input_ids[index, place] = torch.tensor(tokens)
        mask[index, place] = 1
    device = next(base.parameters()).device
    given = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
    written_after = 0 if reads_first else longest
    if not reads_first and virtual_tokens(model):
        model, given, written_after = base, _embedded(model, **given), 0  # what is given as vectors is not repeated
    settings: dict[str, Any] = {"decoder_start_token_id": base.config.decoder_start_token_id} if reads_first else {}
    output = model.generate(
        **given,
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=pad,
            eos_token_id=sorted(end_tokens(tokenizer, base.generation_config)) or None,
            **settings,
        ),
    )
    return list(tokenizer.batch_decode(output[:, written_after:], skip_special_tokens=True))


def _embedded(model: Any, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
    """A batch padded on the left as vectors, with the method's virtual tokens right before each row's first token.

    PEFT puts them before the padding, so that a row's answer would depend on the lengths of the others.
    """
    import torch

    texts = model.get_base_model().get_input_embeddings()(input_ids)
    virtual = model.get_prompt(batch_size=len(input_ids)).to(texts.dtype)
    vectors = torch.cat((torch.zeros_like(virtual), texts), dim=1)
    mask = torch.cat((attention_mask.new_zeros(virtual.shape[:2]), attention_mask), dim=1)
    first = mask.argmax(dim=1)
    for row, end in enumerate(first.tolist()):
        vectors[row, end - virtual.shape[1] : end] = virtual[row]
        mask[row, end - virtual.shape[1] : end] = 1
    return {"inputs_embeds": vectors, "attention_mask": mask}
