"""What the two counts of kept memory share: the run they are asked about, the lengths of its rows, their answer."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.loops import FUSED
from jobs.shape import LinearModule, ModelShape
from jobs.spec import TrainingParams

if TYPE_CHECKING:
    from jobs.memory.plan import MemoryPlan
    from jobs.methods.base import Method, Quantization

FP32 = 4  # bytes
_MOST_STEPS = 300  # of a run whose rows were not counted
_ONE_IN = 10  # runs: so many have a step with more tokens than is reckoned with
_SKEW = 1.5  # of rows' lengths: most are short, a few long


class Lengths(Frozen):
    """How long a dataset's rows are, in tokens, after truncation."""

    longest: int  # of one text
    mean: float  # of a row, with all its texts
    spread: float  # of a row: the standard deviation
    rows: int = 0  # 0 where they were not counted
    longest_aside: int = 0  # of one text that is kept aside for validation; where it is not known which are, 0

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
    adapters: int = 1  # that train together, all alike

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return min(self.training.max_length, self.lengths.longest)

    @property
    def longest_evaluated(self) -> int:
        """Tokens of the longest text that is read without being trained on."""
        return min(self.training.max_length, self.lengths.longest_aside or self.lengths.longest)

    @property
    def micro_batch_tokens(self) -> int:
        """Of the widest: every text in it is padded to its longest."""
        rows = self._at_most_all(self.training.batch_size)
        return rows * self.sequences * (self.longest + self.method.positions(self.params))

    @cached_property
    def row_tokens(self) -> int:
        """Of the longest row, with all its texts: a pack holds at least one of each adapter."""
        return self.longest * self.sequences * self.adapters

    @cached_property
    def step_tokens(self) -> int:
        """Of the longest step."""
        rows = self._at_most_all(self.training.batch_size * self.training.gradient_accumulation) * self.adapters
        likely = rows * self.lengths.mean + self._deviations(rows) * self.lengths.spread * rows**0.5
        return int(min(rows * self.longest * self.sequences, max(likely, self.row_tokens)))

    def _at_most_all(self, rows: int) -> int:
        return min(rows, self.lengths.rows or rows)

    def _deviations(self, rows: int) -> float:
        """How many standard deviations the longest of a run's steps lies above their mean: the quantile of a normal
        distribution, corrected for its skew (Cornish and Fisher 1938)."""
        steps = self.training.steps(self.lengths.rows) if self.lengths.rows else self.training.max_steps or _MOST_STEPS
        quantile = statistics.NormalDist().inv_cdf(1 - 1 / (_ONE_IN * max(steps, 1)))
        return quantile + (quantile**2 - 1) * _SKEW / rows**0.5 / 6

    @cached_property
    def most_pack_tokens(self) -> int:
        """What Micro-batch and Maximum length allow."""
        return self.training.batch_size * self.training.max_length * self.sequences * self.adapters

    def pack_tokens(self, plan: MemoryPlan) -> int:
        """Of the longest pack (jobs.training.packed.packs): all rows of a step, up to the pack's capacity."""
        return max(self.row_tokens, min(plan.pack_tokens, self.step_tokens))

    @cached_property
    def quantization(self) -> Quantization:
        """How the frozen base is held."""
        return self.method.quantization(self.params)

    @cached_property
    def linear_parameters(self) -> int:
        return self.shape.linear_parameters

    @cached_property
    def fused(self) -> bool:
        """Whether the packed loop computes it in layers of its own, rather than in transformers'."""
        known = self.shape.model_type in FUSED and self.method.name != "dora"
        return known and not getattr(self.params, "dropout", 0)

    @cached_property
    def trainable(self) -> int:
        """Parameters, with a new head's."""
        return (self.method.trainable(self.params, self.shape) + (self.head or 0)) * self.adapters

    @cached_property
    def modules(self) -> list[LinearModule]:
        """Those that something is trained beside."""
        return self.method.modules(self.params, self.shape.linears)

    @cached_property
    def layers(self) -> int:
        """Those that the backward pass goes through."""
        return self.method.layers_reached(self.params, self.shape)
