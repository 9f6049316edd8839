"""ModelShape against the models themselves: tiny ones of four families, and the folders that are no base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs.errors import UserError
from jobs.shape import read_shape
from tests import tiny


def build(family: str, folder: Path) -> Path:
    """A tiny random model of `family` with a tokenizer, in Hugging Face layout."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    tokenizer = tiny.build_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
    }
    model: torch.nn.Module
    if family == "gpt2":
        model = t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128)
        )
    elif family == "qwen3":
        model = t.Qwen3ForCausalLM(t.Qwen3Config(**sizes, tie_word_embeddings=False))
    elif family == "gemma3":
        model = t.Gemma3ForCausalLM(t.Gemma3TextConfig(**sizes))
    else:
        return tiny.build_llama(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
def test_sizes_are_those_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    folder = build(family, tmp_path / family)
    shape = read_shape(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)

    assert shape.architecture == type(model).__name__
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.vocab_size == model.get_input_embeddings().num_embeddings
    assert shape.hidden_size == model.get_input_embeddings().embedding_dim
    assert shape.layers == 2
    assert shape.max_length == {"llama": 512}.get(family, 128)
    assert shape.has_chat_template

    head = model.get_output_embeddings()
    expected = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            expected[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            expected[name] = (module.nx, module.nf)
    found = {m.name: (m.in_features, m.out_features) for m in shape.linears}
    # GPT-2 is stored without the name of its outermost module.
    assert {name.removeprefix("transformer."): v for name, v in found.items()} == {
        name.removeprefix("transformer."): v for name, v in expected.items()
    }


def test_layers_are_listed_from_the_first_to_the_last(tmp_path: Path) -> None:
    shape = read_shape(tiny.build_llama(tmp_path / "deep", layers=11, hidden=16))
    numbers = [int(m.name.split(".layers.")[1].split(".")[0]) for m in shape.linears]
    assert numbers == sorted(numbers)
    assert set(shape.leaves) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    assert not read_shape(tiny.build_llama(tmp_path / "plain", template=None)).has_chat_template


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no .safetensors file"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_that_part(
    missing: str, said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_llama, folder)
    (folder / missing).unlink()
    with pytest.raises(UserError, match=said):
        read_shape(folder)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", b"{not json", "not valid JSON"),
        ("config.json", json.dumps({"model_type": "mystery"}).encode(), "hidden_size"),
        ("model.safetensors", b"short", "not a readable safetensors file"),
        ("model.safetensors", b"\xff" * 64, "not a readable safetensors file"),
    ],
)
def test_a_broken_file_is_named(file: str, content: bytes, said: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_llama, folder)
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_shape(folder)
