"""What a model says of a row does not depend on the rows beside it: alone and in a padded batch it is the same."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.methods import all_methods, method
from jobs.methods.base import Context
from jobs.shape import read_shape
from jobs.tasks.base import HEADS, Head
from tests.test_methods import CPU, build, small_params

LENGTHS = (3, 9, 5)
DECODERS = ("llama", "gpt2")  # places by angles, and by vectors of their own
READING: tuple[Head, ...] = ("sequence", "token", "span")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A decoder with a head: (its folder, a copy of it, its new parameters)."""
    folder = tmp_path_factory.mktemp("decoders")

    @functools.cache
    def loaded(family: str, head: Head) -> tuple[Path, Any, tuple[str, ...]]:
        import torch
        import transformers

        files = folder / family
        if not files.is_dir():
            build(family, files)
        torch.manual_seed(0)
        more = {"num_labels": 3} if head in ("sequence", "token") else {}
        auto = getattr(transformers, HEADS[head][0])
        model, found = auto.from_pretrained(files, pad_token_id=0, output_loading_info=True, **more)
        return files, model, tuple(found["missing_keys"])

    return loaded


def tuned(name: str, base: tuple[Path, Any, tuple[str, ...]], head: Head) -> Any:
    """The method on a copy of the base, as if it had been trained."""
    from jobs.training import heads

    files, model, new = base
    chosen = method(name)
    context = Context(HEADS[head][1], 20, str(files))
    model = chosen.attach(copy.deepcopy(model), small_params(chosen), context)
    heads.train(model, new)
    return stirred(model, [parameter for parameter in model.parameters() if parameter.requires_grad], 0.1)


def stirred(model: Any, parameters: Iterable[Any], strength: float) -> Any:
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter += strength * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def read(model: Any, head: Head, lengths: tuple[int, ...]) -> list[Any]:
    """What the head says of texts of these lengths, each row's own."""
    import numpy as np
    import torch

    from jobs.tasks import reading
    from jobs.training.data import Row

    setting: Any = SimpleNamespace(pad_token_id=0, tokenizer=SimpleNamespace(model_input_names=[]))
    rows = [Row(n, np.arange(20, 20 + n, dtype=np.int32), np.zeros(n, dtype=np.bool_)) for n in lengths]
    batch = reading.collate(rows, setting)
    with torch.no_grad():
        if head == "sequence":
            return list(reading.judged(model, batch))
        said = reading.read(model, batch)
        values = said.logits if head == "token" else torch.stack((said.start_logits, said.end_logits), dim=-1)
        values = reading.per_token(values, batch)
    return [values[place, :length] for place, length in enumerate(lengths)]


@pytest.mark.parametrize("name", all_methods())
@pytest.mark.parametrize("head", READING)
@pytest.mark.parametrize("family", DECODERS)
def test_a_row_is_judged_alike_alone_and_in_a_padded_batch(name: str, head: Head, family: str, load: Any) -> None:
    import torch

    chosen, base = method(name), load(family, head)
    if HEADS[head][1] not in chosen.task_types or chosen.check(small_params(chosen), read_shape(base[0]), CPU):
        return  # refused, which tests/test_methods.py looks at
    model = tuned(name, base, head)
    together = read(model, head, LENGTHS)
    for length, said in zip(LENGTHS, together, strict=True):
        (alone,) = read(model, head, (length,))
        torch.testing.assert_close(said, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["lora", "prompt-tuning", "p-tuning", "prefix-tuning", "adaption-prompt"])
@pytest.mark.parametrize("family", DECODERS)
def test_an_answer_is_written_alike_alone_and_in_a_padded_batch(name: str, family: str, load: Any) -> None:
    import transformers

    from jobs.training.writing import write

    files, bare, _ = load(family, "causal")
    if method(name).check(small_params(method(name)), read_shape(files), CPU):
        return
    bare = copy.deepcopy(bare)
    stirred(bare, bare.parameters(), 0.3)  # fresh from its config it repeats what it is given
    bare.generation_config.eos_token_id = None
    model = tuned(name, (files, bare, ()), "causal")
    tokenizer = transformers.AutoTokenizer.from_pretrained(files)
    tokenizer.eos_token = None  # every answer is written to its full length
    prompts = [list(range(20, 20 + 7 * length, 7)) for length in LENGTHS]
    together = write(model, tokenizer, prompts, 12)
    assert together == [write(model, tokenizer, [prompt], 12)[0] for prompt in prompts]
    with model.disable_adapter():
        assert write(model, tokenizer, prompts, 12) == write(bare, tokenizer, prompts, 12) != together
