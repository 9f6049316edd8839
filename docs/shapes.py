"""One model of each kind, by the tensors that its files name: what the generated pages count parameters on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.shape import ModelShape, shape_of


def shapes() -> Iterator[tuple[str, ModelShape]]:
    """SmolLM2-135M, GPT-2, BERT base, T5 small, by the names of their kinds."""
    yield (
        "Llama",
        _shape(
            {"model_type": "llama", "num_key_value_heads": 3, "architectures": ["LlamaForCausalLM"]},
            (576, 1536, 30, 9, 49_152),
            "model.embed_tokens",
            {
                "model.layers.{}.self_attn": {"q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576)},
                "model.layers.{}.self_attn.": {"o_proj": (576, 576)},
                "model.layers.{}.mlp": {"gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536)},
                "model.layers.{}": {"input_layernorm": (576,), "post_attention_layernorm": (576,)},
            },
            {"model.norm.weight": (576,)},
        ),
    )
    yield (
        "GPT-2",
        _shape(
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
            (768, 3072, 12, 12, 50_257),
            "wte",
            {
                "h.{}.attn": {"c_attn": (768, 2304), "c_proj": (768, 768)},
                "h.{}.mlp": {"c_fc": (768, 3072), "c_proj": (3072, 768)},
                "h.{}": {"ln_1": (768,), "ln_2": (768,)},
            },
            {f"h.{n}.attn.c_attn.bias": (2304,) for n in range(12)},
        ),
    )
    yield (
        "BERT",
        _shape(
            {"model_type": "bert", "architectures": ["BertModel"]},
            (768, 3072, 12, 12, 30_522),
            "embeddings.word_embeddings",
            {
                "encoder.layer.{}.attention.self": {"query": (768, 768), "key": (768, 768), "value": (768, 768)},
                "encoder.layer.{}.attention.output": {"dense": (768, 768), "LayerNorm": (768,)},
                "encoder.layer.{}.intermediate": {"dense": (3072, 768)},
                "encoder.layer.{}.output": {"dense": (768, 3072), "LayerNorm": (768,)},
            },
            {f"encoder.layer.{n}.output.dense.bias": (768,) for n in range(12)},
        ),
    )
    stacks = {"encoder": (("SelfAttention",), 1), "decoder": (("SelfAttention", "EncDecAttention"), 2)}
    blocks: dict[str, dict[str, tuple[int, ...]]] = {}
    for stack, (attentions, last) in stacks.items():
        for number, kind in enumerate(attentions):
            blocks[f"{stack}.block.{{}}.layer.{number}.{kind}"] = dict.fromkeys("qkvo", (512, 512))
        blocks[f"{stack}.block.{{}}.layer.{last}.DenseReluDense"] = {"wi": (2048, 512), "wo": (512, 2048)}
        blocks[f"{stack}.block.{{}}.layer.{last}"] = {"layer_norm": (512,)}
    yield (
        "T5",
        _shape(
            {"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]},
            (512, 2048, 6, 8, 32_128),
            "shared",
            blocks,
            {},
        ),
    )


def _shape(
    config: dict[str, Any],
    sizes: tuple[int, int, int, int, int],
    embedding: str,
    blocks: dict[str, dict[str, tuple[int, ...]]],
    others: dict[str, tuple[int, ...]],
) -> ModelShape:
    hidden, _, layers, _, vocabulary = sizes
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    config = config | dict(zip(names, sizes, strict=True)) | {"max_position_embeddings": 2048}
    tensors = {f"{embedding}.weight": (vocabulary, hidden), **others}
    for layer in range(layers):
        for parent, leaves in blocks.items():
            for leaf, shape in leaves.items():
                tensors[f"{parent.format(layer).rstrip('.')}.{leaf}.weight"] = shape
    header = {name: {"dtype": "F32", "shape": list(shape)} for name, shape in tensors.items()}
    return shape_of(config, header, has_chat_template=True)
