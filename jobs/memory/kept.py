"""What the two counts of kept memory share: the run they are asked about, the lengths of its rows, their answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.shape import ModelShape
from jobs.spec import TrainingParams

if TYPE_CHECKING:
    from jobs.methods.base import Method

FP32 = 4  # bytes
_RARE = 2.5  # standard deviations: of a hundred steps about one has more tokens


class Lengths(Frozen):
    """How long a dataset's rows are, in tokens, after truncation."""

    longest: int  # of one text
    mean: float  # of a row, with all its texts
    spread: float  # of a row: the standard deviation

    @classmethod
    def all(cls, length: int, sequences: int = 1) -> Lengths:
        return cls(longest=length, mean=length * sequences, spread=0.0)


class Kept(Frozen):
    """Bytes at the peak, beside weights, gradients and moments."""

    activations: int
    logits: int
    workspace: int


@dataclass(frozen=True)
class Case:
    """A run as the estimate sees it."""

    shape: ModelShape
    method: Method
    params: Any
    training: TrainingParams
    hardware: Hardware
    width: int  # bytes of one activation
    lengths: Lengths
    sequences: int
    head: int | None

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return min(self.training.max_length, self.lengths.longest)

    @property
    def micro_batch_tokens(self) -> int:
        """Of the widest: every text in it is padded to its longest."""
        return self.training.batch_size * self.sequences * (self.longest + self.method.positions(self.params))

    @property
    def pack_tokens(self) -> int:
        """Of the longest pack (jobs.training.packed.packs): all rows of a step, up to the pack's capacity."""
        rows = self.training.batch_size * self.training.gradient_accumulation
        row = self.longest * self.sequences
        likely = rows * self.lengths.mean + _RARE * self.lengths.spread * rows**0.5
        capacity = self.training.batch_size * self.training.max_length * self.sequences
        return int(min(capacity, rows * row, max(likely, row)))

    @property
    def layers(self) -> int:
        """Those that the backward pass goes through."""
        return self.method.layers_reached(self.params, self.shape)
