"""How a loop goes about a run in the memory there is: how much it computes at once, and what it computes twice.

All plans of a run give the same numbers. The fastest that fits is taken; the estimate before Start and the training
child choose by the same functions. Ends at the plan: what it comes to is packed.py's and plain.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from jobs.frozen import Frozen
from jobs.memory.kept import Case

# What a layer costs that is computed again, as a share of its passes forward and back: there is no product for the
# slope of frozen weights, so that is one of two; our own layers leave out the product down, a quarter of it.
_AGAIN, _AGAIN_FUSED = 0.5, 0.37
# What each pass costs by itself, in tokens: launching, and bringing weights into the form they are multiplied in.
_A_PASS = {"none": 60.0, "fp8": 120.0, "int8": 60.0, "nf4": 250.0}
_TRAVEL, _FETCH = 1.1, 1.01  # how much slower it is with inputs, or embeddings, in the host's memory
_FEWER = 0.7  # of a pack's tokens, from one size to the next
_SHARES = 8  # of the layers: so finely is chosen how many are recomputed


class MemoryPlan(Frozen):
    """`pack_tokens`: the most tokens of one pass of the packed loop; a row that is longer has one to itself."""

    pack_tokens: int = 0
    recomputed: int = 0  # layers, from the first, that keep their input alone; in the plain loop none or all
    embedding_on_host: bool = False
    offloaded: bool = False  # what recomputed layers keep waits in the host's memory

    def sentence(self, layers: int) -> str:
        """For a person; empty where nothing was done to save memory."""
        said = []
        if self.recomputed:
            are = "is" if self.recomputed == 1 else "are"
            many = "all layers are" if self.recomputed >= layers else f"{self.recomputed} of {layers} layers {are}"
            said.append(f"{many} computed twice instead of being remembered")
        if self.offloaded:
            said.append("what goes into them waits in the computer's memory")
        if self.embedding_on_host:
            said.append("the table of words (the embeddings) lies in the computer's memory")
        return f"To save memory, {', '.join(said)}: it learns the same, more slowly." if said else ""


def plain_plans(case: Case) -> Iterator[MemoryPlan]:
    """Those of transformers' Trainer, the fastest first."""
    recompute = case.training.recompute
    if recompute != "on":
        yield MemoryPlan()
    if recompute == "on" or (recompute == "auto" and case.method.recomputes):
        yield MemoryPlan(recomputed=max(case.layers, case.shape.layers))


def packed_plans(case: Case) -> list[MemoryPlan]:
    """Those of the packed loop, the fastest first."""
    recompute, layers = case.training.recompute, case.layers
    counts = {"on": [layers], "off": [0]}.get(recompute) or sorted(
        {math.ceil(layers * share / _SHARES) for share in range(_SHARES + 1)}
    )
    can_wait = case.hardware.device == "cuda" and case.fused
    can_move = can_wait and not case.shape.tied
    found = [
        MemoryPlan(pack_tokens=tokens, recomputed=count, embedding_on_host=moved)
        for tokens in _capacities(case)
        for count in counts
        for moved in ((False, True) if can_move else (False,))
    ]
    if can_wait and recompute != "off":
        found += [
            MemoryPlan(pack_tokens=tokens, recomputed=layers, embedding_on_host=can_move, offloaded=True)
            for tokens in _capacities(case)
        ]
    return sorted(found, key=lambda plan: packed_cost(case, plan))


def first_that_fits(plans: list[MemoryPlan], needs: Callable[[MemoryPlan], int], budget: int) -> MemoryPlan:
    """`needs`: bytes at a plan's peak. The most saving one where none fits."""
    least, smallest = plans[0], math.inf
    for plan in plans:
        bytes_ = needs(plan)
        if bytes_ <= budget:
            return plan
        if bytes_ < smallest:
            least, smallest = plan, bytes_
    return least


def tighter(plans: list[MemoryPlan], needs: Callable[[MemoryPlan], int], plan: MemoryPlan) -> MemoryPlan | None:
    """The fastest that needs a tenth less than `plan`; else the most saving; None where that is what was tried."""
    now = needs(plan)
    least = min(plans, key=needs)
    return next((other for other in plans if needs(other) <= 0.9 * now), least if needs(least) < now else None)


def _capacities(case: Case) -> list[int]:
    """Tokens of a pack: all that may be computed at once, ever fewer, at last a row by itself."""
    found = [min(case.most_pack_tokens, max(case.step_tokens, case.row_tokens))]
    while (fewer := int(found[-1] * _FEWER)) > case.row_tokens:
        found.append(fewer)
    return list(dict.fromkeys([case.most_pack_tokens, *found[1:], case.row_tokens]))


def plain_cost(case: Case, plan: MemoryPlan) -> float:
    """What a step costs, in tokens; padding is not among them."""
    passes = case.training.gradient_accumulation * _A_PASS[case.quantization]
    return case.step_tokens * (1 + (_AGAIN if plan.recomputed else 0)) + passes


def packed_cost(case: Case, plan: MemoryPlan) -> float:
    """The same in the packed loop."""
    tokens = case.step_tokens
    passes = math.ceil(tokens / max(case.pack_tokens(plan), 1))
    again = (_AGAIN_FUSED if case.fused else _AGAIN) * plan.recomputed / max(case.layers, 1)
    cost = tokens * (1 + again) + passes * _A_PASS[case.quantization]
    return cost * (_TRAVEL if plan.offloaded else 1.0) * (_FETCH if plan.embedding_on_host else 1.0)
