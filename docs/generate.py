"""docs/methods.md from the registry of methods: `python -m docs.generate`. tests/test_docs.py fails where it is stale.

One function a page; a page is a list of lines. Imports no torch: sizes come from names and shapes of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from jobs.fields import limits_of, number_text, title_of
from jobs.hardware import Hardware
from jobs.methods import all_methods
from jobs.methods.base import Method
from jobs.methods.targets import GUIDE
from jobs.shape import ModelShape, shape_of

HERE = Path(__file__).parent
GPU = Hardware(device="cuda", name="GPU", memory_total=24 << 30, memory_free=23 << 30, cores=8, bf16=True)
# PEFT's words for what a model does, in ours.
DOES = {
    "CAUSAL_LM": "write",
    "SEQ_2_SEQ_LM": "rewrite",
    "SEQ_CLS": "classify",
    "TOKEN_CLS": "tag",
    "QUESTION_ANS": "extract",
}
# Settings without which a method does nothing.
NEEDED = {"trainable-tokens": {"tokens": "<|im_start|> <|im_end|>"}}


def methods_page() -> list[str]:
    shapes = dict(_shapes())
    lines = [
        "# Methods",
        "",
        "Written by `make docs` from the methods themselves; change those, not this page.",
        "",
        "Parameters are those trained on SmolLM2-135M with the default settings. A method that *merges* can be folded",
        "into the base and then costs nothing; *slows* says whether it makes answers slower until then.",
    ]
    groups: dict[str, list[Method]] = {}
    for chosen in all_methods().values():
        groups.setdefault(chosen.group, []).append(chosen)
    head = ["Method", "Parameters", "Merges", "Slows", "Base weights", "Tasks", *shapes]
    for group, members in groups.items():
        lines += ["", f"## {group}", "", _row(head), _row(["---"] * len(head))]
        lines += [_row(_cells(chosen, shapes)) for chosen in members]
        lines += [""] + [f"- **{chosen.label}**: {chosen.help}" for chosen in members]
    lines += ["", "## Choosing layers", "", GUIDE.rstrip(), "", "## Settings"]
    for chosen in all_methods().values():
        lines += ["", f"### {chosen.label}", "", *_settings(chosen)]
    return lines


PAGES: dict[str, Callable[[], list[str]]] = {"methods.md": methods_page}


def _cells(chosen: Method, shapes: dict[str, ModelShape]) -> list[str]:
    params = type(chosen).Params(**NEEDED.get(chosen.name, {}))
    first = next(iter(shapes.values()))
    fits = {name: not chosen.check(params, shape, GPU) for name, shape in shapes.items()}
    return [
        chosen.label,
        f"{chosen.trainable(params, first):,}" if next(iter(fits.values())) else "–",
        "yes" if chosen.merges else "no",
        "yes" if chosen.slows_answers else "no",
        _base_weights(chosen),
        "all" if set(chosen.task_types) == set(DOES) else ", ".join(DOES[kind] for kind in chosen.task_types),
        *("yes" if fits[name] else "no" for name in shapes),
    ]


def _base_weights(chosen: Method) -> str:
    field = type(chosen).Params.model_fields.get("base_weights")
    if field is None:
        return {"none": "full", "int8": "8-bit", "nf4": "4-bit"}[chosen.quantization(type(chosen).Params())]
    shape = dict(_shapes())["Llama"]
    params = type(chosen).Params(**NEEDED.get(chosen.name, {}))
    held = get_args(field.annotation)
    return ", ".join(h for h in held if not chosen.check(params.model_copy(update={"base_weights": h}), shape, GPU))


def _settings(chosen: Method) -> Iterator[str]:
    fields = type(chosen).Params.model_fields
    if not fields:
        yield "None."
        return
    yield _row(["Setting", "Default", "May be", "What it does"])
    yield _row(["---"] * 4)
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        yield _row([title_of(name, field), _value(default), _allowed(field), field.description or ""])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return number_text(value) if isinstance(value, int | float) else (value or "empty")


def _allowed(field: Any) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(map(str, get_args(field.annotation)))
    if field.annotation is bool:
        return "on, off"
    if field.annotation is str:
        return "text"
    limits = limits_of(field)
    low, high = limits.get("ge", limits.get("gt")), limits.get("le")
    return f"{number_text(low)} to {number_text(high)}" if low is not None and high is not None else "a number"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _shapes() -> Iterator[tuple[str, ModelShape]]:
    """One model of each kind, by the tensors that its files name: SmolLM2-135M, GPT-2, BERT base, T5 small."""
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


def main() -> None:
    for name, page in PAGES.items():
        (HERE / name).write_text("\n".join(page()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
