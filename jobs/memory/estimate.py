"""The memory estimate: what a run will need at its peak, part by part, from sizes alone. Reads no weights.

Each training loop keeps other things for the backward pass: packed.py and plain.py count them. Here is what both hold
besides (weights, gradients, moments), and the sum. Sources of the sizes: Korthikanti et al. 2022 (activations a layer),
Dettmers et al. 2022 (8 bits and a scale a row; moments: 8 bits and a scale per 256), Dettmers et al. 2023 (NF4: 4 bits
and a scale per 64 weights, the scales again in 8 bits with double quantization).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.memory import packed as packed_loop
from jobs.memory import plain as plain_loop
from jobs.memory.kept import FP32, Case, Lengths
from jobs.memory.plan import (
    MemoryPlan,
    first_that_fits,
    packed_cost,
    packed_plans,
    plain_cost,
    plain_plans,
    tighter,
)
from jobs.shape import ModelShape
from jobs.spec import TrainingParams

if TYPE_CHECKING:
    from jobs.loops import LoopName
    from jobs.methods.base import Method

_NF4_BITS = {True: 4.127, False: 4.5}  # bits a weight, scales included: with and without double quantization
_INT8_BITS = 8.1  # a scale in 32 bits for each row
_NARROW_MOMENT = 1 + FP32 / 256  # bytes of one in 8 bits, with its part of a block's scale
PROCESS = 640 << 20  # a trainer's imports on a CPU, and what it does besides: evaluates, saves; measured
_MEASURES = 80 << 20  # what a new head's measures import besides (scikit-learn), measured with the starter encoder
CUDA_CONTEXT = 600 << 20  # kernels and handles on a GPU: outside torch's allocator, so outside the measured peak


class Estimate(Frozen):
    """Bytes at the peak, part by part."""

    base: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in type(self).model_fields)


# How the page names the parts, in the order they are drawn.
LABELS: dict[str, str] = {
    "base": "Base model",
    "adapter": "Adapter",
    "gradients": "Gradients",
    "optimizer": "Optimizer",
    "activations": "Activations",
    "logits": "Logits",
    "workspace": "Workspace",
}


def compute_bytes(hardware: Hardware) -> int:
    """Bytes of one activation: the dtype the child will compute in (jobs.training.load)."""
    return 2 if hardware.device == "cuda" or hardware.bf16 else FP32


class Planner:
    """The peak of one run in `loop` (jobs.loops.choose), and how it goes about the memory there is.

    `lengths`: where the dataset has been checked; else every row is taken to have the maximum length. `sequences`: the
    texts that one row puts through the model at once (Task.sequences). `head`: the parameters of a task's new head
    (Task.new_head). `adapters`: how many train together, all like this one. `plans`: the fastest first.
    """

    def __init__(
        self,
        shape: ModelShape,
        method: Method,
        params: Any,
        training: TrainingParams,
        hardware: Hardware,
        lengths: Lengths | None = None,
        sequences: int = 1,
        head: int | None = None,
        loop: LoopName = "plain",
        adapters: int = 1,
    ) -> None:
        self._packed = loop == "packed"
        self._case = Case(
            shape=shape,
            method=method,
            params=params,
            training=training,
            hardware=hardware,
            width=compute_bytes(hardware),
            lengths=lengths or Lengths.all(training.max_length, sequences),
            sequences=sequences,
            head=head,
            adapters=adapters,
        )
        self.plans = packed_plans(self._case) if self._packed else list(plain_plans(self._case))
        self._budget = budget(hardware, training)
        self._kept = packed_loop.counted(self._case) if self._packed else partial(plain_loop.kept, self._case)
        self._bases = {moved: _base(self._case, self._packed, moved) for moved in (False, True)}
        self._held = {
            again: method.held_memory(params, shape, again, self._case.width)
            for again in {bool(plan.recomputed) for plan in self.plans}
        }

    def planned(self) -> tuple[MemoryPlan, Estimate]:
        """The fastest plan that fits; the most saving where none does."""
        plan = first_that_fits(self.plans, self._total, self._budget)
        return plan, self.of(plan)

    def tighter(self, plan: MemoryPlan) -> MemoryPlan | None:
        """What to try where `plan` needed more than there is; None where nothing needs less."""
        return tighter(self.plans, self._total, plan)

    def cost(self, plan: MemoryPlan) -> float:
        """What a step costs with this plan, to compare it with others of as many rows a step."""
        return packed_cost(self._case, plan) if self._packed else plain_cost(self._case, plan)

    def slowdown(self, plan: MemoryPlan) -> float:
        """How many times as long a step takes with this plan as where nothing is saved."""
        least = self.cost(MemoryPlan(pack_tokens=self._case.most_pack_tokens))
        return self.cost(plan) / least if least else 1.0  # rows of no tokens cost nothing

    def of(self, plan: MemoryPlan) -> Estimate:
        """The peak with this plan."""
        parts, case = self._parts(plan), self._case
        if case.quantization == "fp8":  # it is loaded in 16 bits, all of it, before it is rounded
            parts["workspace"] += max(0, case.shape.parameters * case.width - sum(parts.values()))
        return Estimate(**parts)

    def _total(self, plan: MemoryPlan) -> int:
        return sum(self._parts(plan).values())

    def _parts(self, plan: MemoryPlan) -> dict[str, int]:
        case, method = self._case, self._case.method
        trainable, width = case.trainable, case.width
        kept = self._kept(plan)
        narrow = (
            width if self._packed and width < FP32 else 0
        )  # beside what is trained, and its gradients, stand copies
        gradients = trainable * (FP32 + narrow)
        if method.trains_base and case.training.gradient_accumulation == 1:
            # They grow while activations and logits shrink; the next step's are made after they are gone. On a CPU half
            # of them do not fill the holes that those leave.
            apart = gradients // 2 if case.hardware.device == "cpu" else 0
            gradients = max(apart, gradients - kept.activations - kept.logits)
        embeddings = case.shape.embedding_parameters if method.trains_base else 0
        on_cpu = case.hardware.device == "cpu"
        return {
            "base": self._bases[plan.embedding_on_host],
            "adapter": (case.head or 0 if method.trains_base else trainable) * (FP32 + narrow),
            "gradients": gradients,
            "optimizer": _moments(case.training, trainable, embeddings),
            "activations": kept.activations,
            "logits": kept.logits,
            "workspace": kept.workspace
            + (PROCESS if on_cpu else 0)
            + (_MEASURES if case.head is not None and on_cpu else 0)
            + self._held[bool(plan.recomputed)],
        }


def budget(hardware: Hardware, training: TrainingParams) -> int:
    """Bytes that a run may take: what is free, or the limit that was set, without what a GPU takes beside the
    allocator."""
    most = hardware.memory_free
    if training.memory_limit_gb:
        most = min(most, int(training.memory_limit_gb * 1e9))
    return max(0, most - (CUDA_CONTEXT if hardware.device == "cuda" else 0))


def limited(hardware: Hardware, training: TrainingParams) -> bool:
    """Whether the memory limit that was set binds, and not what is free."""
    return budget(hardware, training) < budget(hardware, TrainingParams())


def over_limit(training: TrainingParams, device: str, peak: int) -> int:
    """Bytes by which a measured peak went over the limit that was set; 0 where it did not, or none was."""
    if not training.memory_limit_gb:
        return 0
    taken = peak + (CUDA_CONTEXT if device == "cuda" else 0)
    return max(0, taken - int(training.memory_limit_gb * 1e9))


def fits(needs: Estimate, hardware: Hardware, training: TrainingParams) -> bool:
    return needs.total <= budget(hardware, training)


def least_on_cpu(base: int) -> int:
    """Bytes that no setting of a run saves on a CPU: the training program and the base model (`as_loaded`)."""
    return PROCESS + base


def as_loaded(shape: ModelShape, trains_base: bool, width: int) -> int:
    """Bytes of the base model before anything of it is quantized. `width`: of an activation (`compute_bytes`)."""
    if trains_base:  # in 32 bits; autocast's narrow copy of a matrix lives from forward to backward
        return shape.parameters * FP32 + (shape.parameters * width if width < FP32 else 0)
    return shape.parameters * width


def _moments(training: TrainingParams, trainable: int, embeddings: int) -> int:
    """AdamW's two; paged ones count as if they stayed. `embeddings`: those trained, which keep 32 bits
    (jobs.training.moments)."""
    if not training.narrow_moments:
        return 2 * trainable * FP32
    return int(2 * ((trainable - embeddings) * _NARROW_MOMENT + embeddings * FP32))


def _base(case: Case, packed: bool, moved: bool) -> int:
    """`moved`: the embeddings lie in the host's memory."""
    shape, width = case.shape, case.width
    if moved:
        return _base(case, packed, False) - shape.embedding_parameters * width
    held = case.quantization
    # On a CPU the whole model is in memory before it is quantized: the narrow weights do not lower the peak.
    if case.method.trains_base or held == "none" or case.hardware.device == "cpu":
        return as_loaded(shape, case.method.trains_base, width)
    if held == "fp8":  # a scale for each row of each layer
        rows = sum(module.out_features for module in shape.linears)
        return case.linear_parameters + rows * FP32 + (shape.parameters - case.linear_parameters) * width
    bits = _INT8_BITS if held == "int8" else _NF4_BITS[getattr(case.params, "double_quantization", False)]
    rest = shape.parameters - case.linear_parameters
    if packed:  # what is not quantized stays as it was loaded
        return int(case.linear_parameters * bits / 8) + rest * width
    # PEFT's preparation for quantized training casts what stays unquantized (embeddings, norms) to 32 bits; autocast
    # keeps a narrow copy of the output head beside it.
    copy = shape.embedding_parameters * width if width < FP32 else 0
    return int(case.linear_parameters * bits / 8) + rest * FP32 + copy
