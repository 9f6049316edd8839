"""Which of a model's layers stand side by side as a group (groups.py), and what of PEFT's layers goes into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from jobs.training.packed.frozen import frozen
from jobs.training.packed.groups import Group, Route, Span
from jobs.training.packed.leaves import Leaves


def group_of(alike: Sequence[Sequence[Any]], leaves: Leaves) -> Group:
    """The layers, PEFT's or bare ones, as one group: of each adapter's own model, which differ in nothing but what is
    trained."""
    first, count = alike[0], len(alike)
    trained = [place for place, layer in enumerate(first) if hasattr(layer, "lora_A")]
    spans, bare, rank, begin = [], [], 0, 0
    for place, layer in enumerate(first):
        base = layer.base_layer if place in trained else layer
        if place in trained:
            size = count * layer.r[_name(layer)]
            spans.append(Span(place, slice(begin, begin + base.out_features), slice(rank, rank + size)))
            rank += size
        begin += base.out_features
        bare.append(base)
    return Group(
        frozen=frozen(bare),
        scale=_scale([first[place] for place in trained]),
        a=leaves.rows([[_matrix(layers[place], "lora_A") for place in trained] for layers in alike])
        if trained
        else None,
        bs=[leaves.columns([_matrix(layers[place], "lora_B") for layers in alike]) for place in trained],
        spans=spans,
        layers=len(first),
        route=_route(alike, trained) if count > 1 and trained else None,
    )


def _route(alike: Sequence[Sequence[Any]], trained: Sequence[int]) -> Route:
    device = _matrix(alike[0][trained[0]], "lora_A").device
    owners, scales = [], []
    for place in trained:
        for owner, layers in enumerate(alike):
            rank = layers[place].r[_name(layers[place])]
            owners += [owner] * rank
            scales += [_scale([layers[place]])] * rank
    return Route(torch.tensor(owners, dtype=torch.int32, device=device), torch.tensor(scales, device=device))


def can_group(layers: Sequence[Any]) -> bool:
    """Whether what is trained beside these layers is LoRA and nothing else, alike for all."""
    trained = [layer for layer in layers if hasattr(layer, "lora_A")]
    if any(getattr(layer.lora_dropout[_name(layer)], "p", 0) for layer in trained):
        return False
    return len({_scale([layer]) for layer in trained}) <= 1 and not any(layer.lora_variant for layer in trained)


def _matrix(layer: Any, which: str) -> torch.nn.Parameter:
    return getattr(layer, which)[_name(layer)].weight  # type: ignore[no-any-return]


def _scale(trained: Sequence[Any]) -> float:
    return float(trained[0].scaling[_name(trained[0])]) if trained else 1.0


def _name(layer: Any) -> str:
    (name,) = layer.active_adapters
    return name  # type: ignore[no-any-return]
