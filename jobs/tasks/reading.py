"""What the tasks that put a new head on a model share: tokens of one text or two, batches, and how the rows that an
evaluation shows are written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.errors import RowProblem, UserError
from jobs.tasks.base import Encoded, check_fast

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.data import Row
    from jobs.training.objective import Setting

SAMPLE_CHARS = 600
_TOGETHER = 16  # inputs in one batch
_BETWEEN = "\n"  # two texts as one, for the preview


def tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], seconds: Sequence[str]
) -> Iterator[tuple[Encoded, int]]:
    """Each text, or pair of texts ("": no second one), with the model's special tokens; nothing of it is trained yet.
    Beside it the place of the second text's first token (the number of tokens where there is none).

    The pair's `text` is both with a line break between them, and the offsets say where a token stands in it.
    """
    check_fast(tokenizer)
    found: list[tuple[Encoded, int] | None] = [None] * len(texts)
    for paired in (False, True):
        places = [place for place, second in enumerate(seconds) if bool(second) == paired]
        if not places:
            continue
        batch = tokenizer(
            [texts[place] for place in places],
            [seconds[place] for place in places] if paired else None,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=paired,
            verbose=False,
        )
        for index, place in enumerate(places):
            ids, offsets = batch["input_ids"][index], batch["offset_mapping"][index]
            if not paired:
                found[place] = Encoded(texts[place], ids, offsets, [False] * len(ids)), len(ids)
                continue
            sequence = batch.sequence_ids(index)
            first, shift = sequence.index(1) if 1 in sequence else len(ids), len(texts[place]) + len(_BETWEEN)
            offsets = [
                (start + shift, end + shift) if number == 1 else (start, end)
                for number, (start, end) in zip(sequence, offsets, strict=True)
            ]
            whole = f"{texts[place]}{_BETWEEN}{seconds[place]}"
            encoded = Encoded(whole, ids, offsets, [False] * len(ids), types=batch["token_type_ids"][index])
            found[place] = encoded, first
    return iter(found)  # type: ignore[arg-type]


def cut(encoded: Encoded, max_length: int) -> Encoded:
    """The first tokens, at most `max_length`; special tokens that close the sequence stay.

    Raises RowProblem where that leaves nothing of the text.
    """
    if len(encoded.input_ids) <= max_length:
        return encoded
    closing = closing_tokens(encoded)
    kept = [*range(max_length - closing), *range(len(encoded.input_ids) - closing, len(encoded.input_ids))]
    if max_length <= closing or all(encoded.offsets[place][1] == 0 for place in kept):
        raise RowProblem("the maximum length leaves nothing of its text")
    return replace(
        encoded,
        input_ids=[encoded.input_ids[place] for place in kept],
        offsets=[encoded.offsets[place] for place in kept],
        trained=[encoded.trained[place] for place in kept],
        types=[encoded.types[place] for place in kept] if encoded.types else None,
    )


def closing_tokens(encoded: Encoded) -> int:
    """How many special tokens end the sequence: they stand for no text."""
    count = 0
    while count < len(encoded.offsets) and encoded.offsets[-1 - count][1] == 0:
        count += 1
    return count


def as_row(encoded: Encoded) -> Row:
    """An input that is no row of a dataset, for `collate`."""
    from jobs.training.data import as_row

    return as_row(0, encoded)


def collate(rows: Sequence[Row], setting: Setting) -> dict[str, torch.Tensor]:
    """The model's inputs, padded on the right to the longest row: input_ids, attention_mask and, where a row is a pair
    and the model tells the two apart, token_type_ids; each [rows, tokens]."""
    import torch

    longest = max(len(row.input_ids) for row in rows)
    input_ids = np.full((len(rows), longest), setting.pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    types = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.input_ids)] = row.input_ids
        mask[index, : len(row.input_ids)] = 1
        if row.types is not None:
            types[index, : len(row.input_ids)] = row.types
    batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
    if types.any() and "token_type_ids" in setting.tokenizer.model_input_names:
        batch["token_type_ids"] = torch.from_numpy(types)
    return batch


def read(model: Any, batch: dict[str, torch.Tensor]) -> Any:
    """The model's output for the inputs that `collate` made; what else the batch holds is the loss's."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return model(**{name: batch[name] for name in names if name in batch})


def judged(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the head says of each whole text: [rows, outputs], in 32 bits.

    A decoder's head is applied to every token and read at the last. transformers finds that by the padding's id, and
    beside virtual tokens, where it gets no ids, it takes padding for the last token: here it is found by length.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(base, "score"):
        return read(model, batch).logits.float()
    heard: list[torch.Tensor] = []
    handle = base.score.register_forward_hook(lambda module, given, output: heard.append(output))
    try:
        read(model, batch)
    finally:
        handle.remove()
    last = batch["attention_mask"].sum(1) - 1
    return per_token(heard[-1], batch)[torch.arange(len(last), device=last.device), last].float()


def per_token(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[rows, tokens, ...] of the batch's own tokens: virtual ones stand before them."""
    return logits[:, -batch["input_ids"].shape[1] :]


def natural(label: str) -> tuple[Any, ...]:
    """A key that sorts "2" before "10", and "b" before "C"."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in re.split(r"(\d+)", label)
    )


def sample_text(row: Row, setting: Setting) -> str:
    """How a row is shown beside what was predicted of it."""
    text = setting.samples[row.number].text
    return text if len(text) <= SAMPLE_CHARS else text[: SAMPLE_CHARS - 1] + "…"


def by_number(rows: Sequence[Row], setting: Setting) -> Iterator[tuple[int, Row]]:
    """(place in `rows`, row) of the rows that an evaluation shows, in the dataset's order."""
    shown = ((place, row) for place, row in enumerate(rows) if row.number in setting.samples)
    return iter(sorted(shown, key=lambda item: item[1].number))


def outputs(
    model: Any,
    inputs: Sequence[dict[str, str]],
    setting: Setting,
    shorten: Callable[[Encoded, int], Encoded],
) -> torch.Tensor:
    """The head's numbers for each input's text and text_pair, [inputs, outputs], in 32 bits on the CPU.

    Raises UserError for an input that is empty.
    """
    import torch

    encoded = tokenise(
        setting.tokenizer,
        [given_text(given, "text") for given in inputs],
        [given.get("text_pair", "").strip() for given in inputs],
    )
    rows = [as_row(shorten(tokens, setting.max_length)) for tokens, _ in encoded]
    found = [
        judged(model, on_device(collate(rows[start : start + _TOGETHER], setting), model)).cpu()
        for start in range(0, len(rows), _TOGETHER)
    ]
    return torch.cat(found)


def given_text(given: dict[str, str], name: str) -> str:
    """Raises UserError where it is empty."""
    if not (text := given.get(name, "").strip()):
        raise UserError(f"The {name.replace('_', ' ')} is empty. Write something for the model to read.")
    return text


def on_device(batch: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    device = next(iter(model.parameters())).device
    return {name: value.to(device) for name, value in batch.items()}
