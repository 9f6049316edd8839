"""Where a method goes: which linear layers of a model, chosen in words, and what those layers are really called.

One choice for every method that works on layers. The estimate, the table on the page and the names given to PEFT all
come from `targeted`, so they cannot disagree. Ends at names: what is put there is the method's.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from jobs.frozen import Frozen
from jobs.shape import LinearModule, ModelShape

if TYPE_CHECKING:
    import torch

Targets = Literal["all-linear", "attention", "mlp", "query-value", "names"]
Depth = Literal["all", "first", "last"]

GUIDE = """\
**Which layers?** An adapter can only change what the layers it sits in compute, and each layer it sits in costs
parameters, memory and a little time.

- **All linear layers** is the safe choice, and the default. At the same number of trained parameters a small rank on
  every layer learns better than a large rank on a few: what a model knows sits mostly in its MLP, what it looks at in
  its attention, and most tasks need some of both.
- **Queries and values** is what the LoRA paper used. Enough for style, tone, a fixed answer format or a
  classification that the base nearly solves, at about a fifth of the parameters of all layers.
- **Attention** shifts what the model looks at: long inputs, extraction, question answering, following a format.
- **MLP** holds facts and vocabulary: a new domain or language, continued pretraining. It is the larger half of a
  model, so it costs more than attention at the same rank.
- **First or last layers**: early layers read the words, late ones decide the answer. The last third is often enough
  to classify or to change a tone, and the backward pass ends where the first adapter sits, so it also trains faster.
  A new language or domain wants all of them.
- **By name** is for what you have read in a paper about your model. The table shows the real names.

**By architecture.** Llama, Qwen, Mistral, Gemma: all linear layers. GPT-2 and GPT-NeoX compute queries, keys and
values in one layer, so "queries and values" takes that whole layer. BERT-like encoders on a few hundred examples:
queries and values, or the last layers; they have little to unlearn. T5: all linear layers, encoder and decoder alike,
because a translation is decided in both. Mixture-of-experts models: their attention; the experts are stored in a form
that adapters on linear layers do not reach.

**Finding the best.** Start with all linear layers at rank 8. If the validation loss is still falling at the end, train
longer before you raise the rank. If it rises early, take fewer layers or a smaller rank. If memory is short, take
attention before you lower the batch. Embeddings, the output head and poolers are never among the targets.
"""


class TargetParams(Frozen):
    """The settings that say where; mixed into each layer method's Params."""

    targets: Targets = Field(
        "all-linear",
        title="Layers",
        description="Which layers are trained. All linear layers learn best; attention alone is smaller.",
        json_schema_extra={
            "labels": {
                "all-linear": "All linear layers",
                "attention": "Attention",
                "mlp": "MLP",
                "query-value": "Queries and values",
                "names": "By name",
            }
        },
    )
    names: str = Field(
        "",
        max_length=1_000,
        title="Layer names",
        description="For Layers by name: q_proj, down_proj, ... The model's own names, separated by commas.",
        json_schema_extra={"advanced": True, "where": {"targets": ["names"]}},
    )
    depth: Depth = Field(
        "all",
        title="Depth",
        description="How deep in the model: the first layers read the words, the last ones decide the answer.",
        json_schema_extra={
            "advanced": True,
            "labels": {"all": "All layers", "first": "First layers", "last": "Last layers"},
        },
    )
    depth_layers: int = Field(
        8,
        ge=1,
        le=1_000,
        title="How many layers",
        description="So many of the first, or last, layers.",
        json_schema_extra={"advanced": True, "where": {"depth": ["first", "last"]}},
    )


class TargetRow(Frozen):
    """One line of the table of what is trained: alike layers, counted."""

    pattern: str  # "model.layers.*.self_attn.q_proj"
    count: int
    parameters: int  # trained in each


_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")
_QUERY_VALUE = frozenset(
    {
        *("q_proj", "v_proj", "query", "value", "q", "v", "q_lin", "v_lin", "query_proj", "value_proj", "wq", "wv"),
        *("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv", "in_proj"),  # one layer for all three
    }
)
# Stored as if they were linear layers of their own, but one block of experts, or its router, once loaded.
_EXPERTS = re.compile(r"\.(experts|block_sparse_moe\.gate|mlp\.gate|router)\b")


def targeted(params: TargetParams, linears: Sequence[LinearModule]) -> list[LinearModule]:
    """The chosen ones of a model's linear layers, in its order: never its embedding, output head or pooler.

    `linears`: `ModelShape.linears` before loading, `linears_of(model)` after.
    """
    modules = [m for m in linears if not _EXPERTS.search(m.name)]
    if params.targets == "names":
        wanted = _split(params.names)
        modules = [m for m in modules if any(_ends_with(m.name, name) for name in wanted)]
    elif params.targets == "query-value":
        modules = [m for m in modules if m.leaf in _QUERY_VALUE]
    elif params.targets != "all-linear":
        modules = [m for m in modules if is_attention(m) == (params.targets == "attention")]
    if params.depth == "all":
        return modules
    counts = _depths(linears)
    return [m for m in modules if _within(params, _number(m.name), counts[_stack(m.name)])]


def target_problems(params: TargetParams, shape: ModelShape) -> list[str]:
    """What is wrong with the choice for this model, in the user's words."""
    problems = []
    real = list(dict.fromkeys(m.leaf for m in shape.linears if not _EXPERTS.search(m.name)))
    if params.targets == "names":
        wanted = _split(params.names)
        if not wanted:
            problems.append(
                f"You set Layers to By name, but Layer names is empty. Give some of: {', '.join(real)}; "
                "or choose Layers in words."
            )
        for name in wanted:
            if not any(_ends_with(m.name, name) for m in shape.linears):
                close = difflib.get_close_matches(name, real, n=1, cutoff=0.5)
                meant = f"Did you mean {close[0]}? " if close else ""
                problems.append(
                    f"You set Layer names to {name!r}, but {shape.architecture} has no layer of that name. "
                    f"{meant}It has: {', '.join(real)}."
                )
    deepest = max(_depths(shape.linears).values(), default=0)
    if params.depth != "all" and params.depth_layers > deepest:
        problems.append(
            f"You set How many layers to {params.depth_layers}, but {shape.architecture} has {deepest}. "
            "Lower it, or set Depth to All layers."
        )
    if not problems and not targeted(params, shape.linears):
        label = TargetParams.model_fields["targets"].json_schema_extra["labels"][params.targets]  # type: ignore[index,call-overload]
        problems.append(
            f"You set Layers to {label}, but Graft finds no such layers in {shape.architecture}. "
            f"Choose All linear layers, or By name from: {', '.join(real)}."
        )
    return problems


def linears_of(model: torch.nn.Module) -> list[LinearModule]:
    """The loaded model's numbered linear layers, quantized ones and GPT-2's transposed kind among them.

    What `ModelShape.linears` lists from the files, under the names they have once loaded: checkpoints are stored with
    and without their outermost modules ("h.0.attn" is "transformer.h.0.attn" then), and a head changes that too.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    found = []
    for name, module in model.named_modules():
        if not _NUMBER.search(name):
            continue  # heads, poolers
        if isinstance(module, torch.nn.Linear):
            found.append(LinearModule(name=name, in_features=module.in_features, out_features=module.out_features))
        elif isinstance(module, Conv1D):
            found.append(LinearModule(name=name, in_features=module.nx, out_features=module.nf))
    return found


def is_attention(module: LinearModule) -> bool:
    """Whether the layer stands in an attention block, by its own name or its parents'."""
    parents = module.name.lower().split(".")[:-1]
    return module.leaf in _QUERY_VALUE or any("attn" in part or "attention" in part for part in parents)


def pattern(name: str) -> str:
    """The name with its layer's number as a star: "model.layers.*.self_attn.q_proj"."""
    return _NUMBER.sub(lambda match: match.group(0).replace(match.group(1), "*"), name, count=1)


def table(modules: Iterable[tuple[LinearModule, int]]) -> list[TargetRow]:
    """Layers and the parameters trained in each as rows of alike layers, in the model's order."""
    rows: dict[tuple[str, int], int] = defaultdict(int)
    for module, parameters in modules:
        rows[pattern(module.name), parameters] += 1
    return [TargetRow(pattern=name, count=count, parameters=each) for (name, each), count in rows.items()]


def _split(names: str) -> list[str]:
    return list(dict.fromkeys(name for name in re.split(r"[,;\s]+", names) if name))


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)


def _number(name: str) -> int:
    match = _NUMBER.search(name)
    return int(match.group(1)) if match else 0


def _stack(name: str) -> str:
    """What the layer is a layer of: T5's encoder and decoder are two stacks."""
    match = _NUMBER.search(name)
    return name[: match.start()] if match else ""


def _depths(linears: Sequence[LinearModule]) -> dict[str, int]:
    depths: dict[str, int] = defaultdict(int)
    for module in linears:
        stack = _stack(module.name)
        depths[stack] = max(depths[stack], _number(module.name) + 1)
    return depths


def _within(params: TargetParams, number: int, depth: int) -> bool:
    return number < params.depth_layers if params.depth == "first" else number >= depth - params.depth_layers
