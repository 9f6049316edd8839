"""ModelShape: what a base model is made of, read from config.json and the safetensors headers. No weights, no torch.

The headers name every tensor with its sizes, so trainable parameters come out exact for any architecture, and a few
hundred kilobytes are read instead of gigabytes.
"""

from __future__ import annotations

import functools
import json
import re
import struct
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from jobs.errors import UserError
from jobs.frozen import Frozen

_EMBEDDINGS = ("embed", "wte", "wpe", "shared", "relative_attention_bias")
_HEADS = ("lm_head", "embed_out", "output_projection")
# Model types that read a text as a whole and write none.
_ENCODERS = frozenset(
    {
        *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert"),
        *("modernbert", "mpnet", "nomic_bert", "roberta", "roformer", "xlm-roberta", "xlm-roberta-xl"),
    }
)
# How the names of the head begin that a model was pretrained with, or tuned before.
_TASK_HEADS = ("classifier", "qa_outputs", "score")
_DECODER_HEADS = frozenset({*_HEADS, *_TASK_HEADS, "lm_loss", "pred_layer"})
_ENCODER_HEADS = frozenset(
    {
        *("cls", "decoder", "dense", "discriminator_predictions", "generator_lm_head", "generator_predictions", "head"),
        *("lm_head", "lm_predictions", "mlm_head", "pre_classifier", "predictions", "sop_classifier"),
        *("vocab_layer_norm", "vocab_projector", "vocab_transform", *_TASK_HEADS),
    }
)
_LAYER = re.compile(r"\.(\d+)\.")


class LinearModule(Frozen):
    """One linear layer, `in_features` to `out_features`, under its name in the model."""

    name: str  # "model.layers.0.self_attn.q_proj"
    in_features: int
    out_features: int

    @functools.cached_property
    def layer(self) -> int:
        """The number of the block it stands in."""
        found = _LAYER.search(self.name)
        return int(found.group(1)) if found else 0

    @functools.cached_property
    def leaf(self) -> str:
        """The last part of the name, which PEFT's `target_modules` matches: "q_proj"."""
        return self.name.rsplit(".", 1)[-1]


class Vector(Frozen):
    """One 1-dimensional parameter: a bias, a norm's weight."""

    name: str  # "model.layers.0.input_layernorm.weight"
    size: int


class End(Frozen):
    """One parameter of a head or a pooler in the files, with how many numbers it has."""

    name: str  # "lm_head.weight"
    size: int


Family = Literal["decoder", "encoder", "encoder-decoder"]


class ModelShape(Frozen):
    """Sizes of one base model. Lengths in tokens, `parameters` counts tied weights once."""

    architecture: str  # "LlamaForCausalLM"
    model_type: str  # "llama"
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_length: int  # the longest input the position embedding was made for
    parameters: int
    embedding_parameters: int
    dtype: str  # of the stored weights: "F32", "BF16", ...
    linears: tuple[LinearModule, ...]
    has_chat_template: bool
    family: Family = "decoder"
    vectors: tuple[Vector, ...] = ()
    ends: tuple[End, ...] = ()  # what a new head may stand in for (jobs.tasks.sizes)
    decoder_layers: int = 0  # of an encoder-decoder's second part; `layers` are its first one's

    @model_validator(mode="before")
    @classmethod
    def _of_earlier(cls, values: Any) -> Any:
        """Catalogs hold shapes that were read before `ends` were: an encoder's head in one number, and of its pooler
        the biases."""
        if not isinstance(values, dict) or "pretraining_head" not in values:
            return values
        values = dict(values)
        ends = [{"name": "predictions", "size": values.pop("pretraining_head")}]
        for vector in values.get("vectors") or ():
            if values.get("family") == "encoder" and "pooler" in vector["name"].split("."):
                square = {"name": f"{vector['name'].removesuffix('bias')}weight", "size": vector["size"] ** 2}
                ends += [dict(vector), square]
        return values | {"ends": [end for end in ends if end["size"]]}

    @property
    def linear_parameters(self) -> int:
        return sum(m.in_features * m.out_features for m in self.linears)

    @property
    def tied(self) -> bool:
        """Whether a decoder's output head is its embedding."""
        return not any(end.name.partition(".")[0] in _HEADS for end in self.ends)

    @property
    def leaves(self) -> tuple[str, ...]:
        """The different linear module names, in the model's order: ("q_proj", "k_proj", ...)."""
        return tuple(dict.fromkeys(m.leaf for m in self.linears))


def read_shape(folder: Path) -> ModelShape:
    """The shape of a model folder in Hugging Face layout.

    Raises UserError with what is missing where the folder is not one Graft can train.
    """
    config_file = folder / "config.json"
    if not folder.exists():
        raise UserError(f"There is no folder {folder} on this machine. Look at its spelling.")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder. Give the folder that the model's files are in.")
    if not config_file.is_file():
        raise UserError(
            f"{folder} has no config.json. A base model is a folder in Hugging Face layout: config.json, "
            "model.safetensors, tokenizer.json."
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"{folder} has no .safetensors file. Graft reads weights in safetensors only; save the model once with "
            "save_pretrained()."
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{folder} has no tokenizer (tokenizer.json). Save the tokenizer beside the model.")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config_file} is not valid JSON ({error}).") from error
    tensors: dict[str, dict[str, Any]] = {}
    for file in weights:
        tensors.update(read_header(file))
    return shape_of(config, tensors, has_chat_template=_has_template(folder))


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Tensor names with dtype and shape from a safetensors file; format: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > 100_000_000:
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(stream.read(length))
    except (struct.error, ValueError) as error:
        raise UserError(f"{file.name} is not a readable safetensors file ({error}).") from error
    header.pop("__metadata__", None)
    return header


def shape_of(config: dict[str, Any], tensors: dict[str, dict[str, Any]], *, has_chat_template: bool) -> ModelShape:
    """A shape from a parsed config.json and tensors as {name: {"dtype", "shape"}} (the Hub's headers too)."""
    text = config.get("text_config") or config

    def size(*names: str, default: int | None = None) -> int:
        for name in names:
            if isinstance(value := text.get(name), int):
                return value
        if default is None:
            raise UserError(f"config.json names no {names[0]}; Graft does not know this architecture's sizes.")
        return default

    hidden = size("hidden_size", "n_embd", "d_model", "dim")
    heads = size("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads", "n_heads")
    layers, family = size("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "n_layers"), _family(config)
    model_type = str(config.get("model_type", "unknown"))
    transposed = model_type in ("gpt2",)  # Conv1D keeps its weight as [in, out]
    linears, vectors, ends, embeddings, parameters = [], [], [], 0, 0
    dtypes: dict[str, int] = {}
    for name, tensor in tensors.items():
        shape = tensor["shape"]
        count = 1
        for length in shape:
            count *= length
        parameters += count
        if _is_end(name, family):
            ends.append(End(name=name, size=count))
        dtypes[tensor["dtype"]] = dtypes.get(tensor["dtype"], 0) + count
        module = name.removesuffix(".weight")
        leaf = module.rsplit(".", 1)[-1]
        if len(shape) == 1:
            vectors.append(Vector(name=name, size=count))
        if len(shape) != 2 or module == name:
            continue
        if any(part in leaf for part in _EMBEDDINGS):
            embeddings += count
        elif leaf not in _HEADS and _LAYER.search(name):
            out_features, in_features = reversed(shape) if transposed else shape
            linears.append(LinearModule(name=module, in_features=in_features, out_features=out_features))
    linears.sort(key=lambda m: int(_LAYER.search(m.name + ".").group(1)))  # type: ignore[union-attr]
    return ModelShape(
        architecture=(config.get("architectures") or ["unknown"])[0],
        model_type=model_type,
        hidden_size=hidden,
        intermediate_size=size(
            "intermediate_size", "n_inner", "d_ff", "encoder_ffn_dim", "hidden_dim", default=4 * hidden
        ),
        layers=layers,
        heads=heads,
        kv_heads=size("num_key_value_heads", default=heads),
        head_dim=size("head_dim", "d_kv", default=hidden // heads),
        vocab_size=size("vocab_size"),
        max_length=size("max_position_embeddings", "n_positions", default=2048),
        parameters=parameters,
        embedding_parameters=embeddings,
        dtype=max(dtypes, key=dtypes.__getitem__) if dtypes else "F32",
        linears=tuple(linears),
        has_chat_template=has_chat_template,
        family=family,
        ends=tuple(ends),
        decoder_layers=size("num_decoder_layers", "decoder_layers", default=layers)
        if family == "encoder-decoder"
        else 0,
        vectors=tuple(vectors),
    )


def _is_end(name: str, family: Family) -> bool:
    first = name.partition(".")[0]
    if family == "encoder":
        return first in _ENCODER_HEADS or "pooler" in name.split(".")
    return family == "decoder" and first in _DECODER_HEADS


def _family(config: dict[str, Any]) -> Family:
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    return "encoder" if config.get("model_type") in _ENCODERS and not config.get("is_decoder") else "decoder"


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    tokenizer_config = folder / "tokenizer_config.json"
    if not tokenizer_config.is_file():
        return False
    try:
        return bool(json.loads(tokenizer_config.read_text(encoding="utf-8")).get("chat_template"))
    except ValueError:
        return False
