"""The sizes that passes are rounded up to.

On a GPU small ones are recorded once and replayed: more sizes waste less on padding and cost more recording, and which
few are best is computed from the packs of the run's first steps. All others are rounded, too, but finely (`finely`),
since the libraries of matrix products prepare themselves for each number of tokens anew. cuBLAS chooses the kernel of
every product, which takes 0.3 ms, on a slow processor longer than the pass. oneDNN, which multiplies on a CPU, compiles
and keeps one: in 60 steps of as many lengths a small model's trainer grew by half a gigabyte.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.memory.packed import rounded_up
from jobs.training.packed.packs import Pack

_GRAIN = 16  # tokens: sizes are multiples of it
_RESERVE = 1.1  # of documents and kept places, over the most that the sample has


@dataclass(frozen=True)
class Size:
    """What a rounded pass holds: tokens, documents and kept places, each at most."""

    tokens: int
    documents: int  # fillers included
    kept: int

    def holds(self, pack: Pack, longest: int) -> bool:
        rest = self.tokens - pack.tokens
        documents = len(pack.ends) - 1 + -(-rest // longest) if rest >= 0 else 0
        return rest >= 0 and documents <= self.documents and len(pack.kept) <= self.kept


class Sizes:
    """`sample`: packs like those to come, `passes` in all. `token_cost` and `size_cost`: seconds that one more token of
    padding takes each time, and one more size once. `longest`: tokens of the longest document."""

    def __init__(
        self, sample: Sequence[Pack], passes: int, *, token_cost: float, size_cost: float, longest: int
    ) -> None:
        self._longest = longest
        weight = passes / max(1, len(sample))
        tokens = chosen([pack.tokens for pack in sample], weight * token_cost, size_cost)
        self._sizes: list[Size] = []
        below = 0
        for size in tokens:
            packs = [pack for pack in sample if below < pack.tokens <= size]
            documents = max(len(pack.ends) - 1 + -(-(size - pack.tokens) // longest) for pack in packs)
            kept = max(len(pack.kept) for pack in packs)
            self._sizes.append(Size(size, _grained(documents * _RESERVE), min(size, _grained(kept * _RESERVE))))
            below = size

    def of(self, pack: Pack) -> Size:
        """The smallest that holds it; one of its own, remembered, where none does."""
        for size in self._sizes[bisect_left(self._sizes, pack.tokens, key=lambda size: size.tokens) :]:
            if size.holds(pack, self._longest):
                return size
        tokens = _grained(pack.tokens * _RESERVE)
        documents = len(pack.ends) - 1 + -(-(tokens - pack.tokens) // self._longest)
        size = Size(tokens, _grained(documents * _RESERVE), min(tokens, _grained(len(pack.kept) * _RESERVE)))
        self._sizes = sorted([*self._sizes, size], key=lambda size: size.tokens)
        return size


def finely(pack: Pack, longest: int, *, on_gpu: bool, whole_answers: bool) -> Size:
    """Of a pass that is not recorded. `whole_answers`: what weighs them counts their tokens, and must not meet any
    kept place that belongs to none."""
    tokens = rounded_up(pack.tokens, on_gpu)
    kept = len(pack.kept) if whole_answers else min(tokens, rounded_up(len(pack.kept), on_gpu))
    return Size(tokens, len(pack.ends) - 1 + -(-(tokens - pack.tokens) // longest), kept)


def chosen(tokens: Sequence[int], token_cost: float, size_cost: float) -> list[int]:
    """The sizes, rising, that cost least: each one `size_cost`, each token from `tokens` up to the next of them
    `token_cost`."""
    packs = Counter(_grained(count) for count in tokens)
    steps = sorted(packs)
    # The cheapest way to cover everything up to steps[index], its last size being that: (cost, the size before).
    best: list[tuple[float, int]] = []
    for index, size in enumerate(steps):
        cost, before, padding = float("inf"), -1, 0.0
        for start in range(index, -1, -1):
            padding += token_cost * packs[steps[start]] * (size - steps[start])
            whole = padding + size_cost + (best[start - 1][0] if start else 0.0)
            if whole < cost:
                cost, before = whole, start - 1
        best.append((cost, before))
    found, index = [], len(steps) - 1
    while index >= 0:
        found.append(steps[index])
        index = best[index][1]
    return found[::-1]


def _grained(count: float) -> int:
    return max(_GRAIN, _GRAIN * -(-int(count) // _GRAIN))
