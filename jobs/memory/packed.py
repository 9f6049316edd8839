"""What the packed loop keeps for the backward pass: exactly what its autograd functions save.

jobs.training.packed: groups.py, pieces.py, attention.py (a layer), head.py (logits), passes.py (recorded passes).
tests/test_memory.py holds this against what autograd really saves.
"""

from __future__ import annotations

from collections.abc import Callable

from jobs.memory.kept import FP32, Case, Kept
from jobs.memory.plan import MemoryPlan

# The packed loop's own sizes, which decide what it keeps: jobs.training.packed takes them from here.
# Tokens whose logits are made at once, at most: at 128k words of vocabulary a quarter of a gigabyte on a GPU. A CPU is
# as fast with fewer, and makes them in 32 bits.
_CHUNK, _CPU_CHUNK = 1_024, 320
# Operations of a forward pass, for each layer: fewer may be computed in less time than the kernels take to launch, and
# the pass is recorded where that is seen. A layer's take from one to four milliseconds, forward and back, as fast as
# the processor is.
LAUNCH_BOUND = 1e12
_EARLY = 0.85  # of a run's longest pack: the longest of its first steps
# Tokens of one batch of an evaluation, which makes all its logits: a micro-batch that the packed loop trains chunk by
# chunk would be far too much.
_EVALUATED, _CPU_EVALUATED = 2_048, 512
WIDENED = 256  # tokens of it whose logits are in 32 bits at once

_GRAIN = 64  # tokens: what passes that are not recorded are rounded up to multiples of
_SIXTEENTH = 16  # on a CPU, where padding costs more than sizes do: at most such a part of them

_HEAD_NORMS = ("qwen3", "gemma3_text")  # queries and keys are normed, head by head
_FOUR_NORMS = ("gemma2", "gemma3_text")  # before and after attention and MLP
_CUBLAS = 130 << 20  # workspaces of the products, for each stream one
# What CUDA's caching allocator keeps beyond what is in use, as a share of what passes come and go with. Measured on an
# H100 and an H200, with segments that grow (jobs.rpc.child_environment).
_SLACK = 0.02
_OTHER_SIZES = 0.18  # recorded passes of other sizes do not quite fit into each other's memory
# Of the weights that were joined, what lies in holes smaller than the pieces in which memory is given back. What is
# given back with each recording is a little more.
_HOLES, _RECORDED_HOLES = 0.12, 0.1
# On a CPU, measured: the holes that malloc leaves, as a share of what is kept, a smaller one of what is kept beyond so
# many bytes, and of logits; in 16 bits also what is compiled for each size of a pack, until what is kept of it is full
# (jobs.rpc.child_environment).
_CPU_HOLES, _CPU_MORE_HOLES, _BEYOND, _CPU_LOGIT_HOLES = 0.45, 0.2, 900 << 20, 0.1
# What recomputed layers leave: so much, but no more than a third of what computing them twice saves, which is less than
# the holes that it saves: where an evaluation is the peak, there is no other gain.
_CPU_AGAIN = 45 << 20
_COMPILED, _MOST_COMPILED = 30 << 20, 120 << 20
# What answering the test prompts between two steps takes of the room that a step leaves, which a step of few rows does
# not: so much, but no more than a share of the base.
_CPU_ANSWERS, _ANSWERS_SHARE = 100 << 20, 0.4
_SPREAD = 4  # standard deviations: nearly all packs lie within so many


def counted(case: Case) -> Callable[[MemoryPlan], Kept]:
    """What a plan keeps: of many plans of a run, what they share is counted once."""
    width, shape = case.width, case.shape
    on_gpu = case.hardware.device == "cuda"
    each, logit, evaluated = layer(case), _logit_bytes(case, on_gpu), _evaluated(case, on_gpu)
    behind_a_token = _behind_a_token(case, on_gpu)
    answers = 0.0 if on_gpu or case.head is not None else min(_CPU_ANSWERS, _ANSWERS_SHARE * shape.parameters * width)

    def kept(plan: MemoryPlan) -> Kept:
        tokens = case.pack_tokens(plan)
        if not on_gpu:  # on a GPU it is a trifle
            tokens = rounded_up(tokens, on_gpu)
        again = min(plan.recomputed, case.layers)  # of the layers that the way back goes through
        inputs = 0 if plan.offloaded else again * shape.hidden_size * width
        activations = tokens * ((case.layers - again) * each + inputs + (each if again else 0))
        saved = max(0, tokens * case.layers * each - activations)
        # Two moments are the widest. At the output head: the last norm's input and output, the places that are trained
        # and their slopes, and a chunk of logits. In a layer's backward pass: the slope of gate times up, of its input,
        # and weights that are unpacked or turned.
        activations += 4 * tokens * shape.hidden_size * width
        # Of however many of them are trained, a chunk has no more than so many.
        logits = min(tokens, _CHUNK if on_gpu else _CPU_CHUNK) * shape.vocab_size * logit
        behind = max(0, tokens * behind_a_token + _unpacked(case, plan) - logits)
        if on_gpu and recorded(case, plan):
            besides = behind + evaluated  # recorded passes keep their memory to themselves
        else:
            besides = max(behind, max(evaluated, answers) - activations - logits)
        return Kept(
            activations=int(activations),
            logits=logits,
            workspace=int(besides)
            + (
                _slack(case, plan, activations + logits)
                if on_gpu
                else _cpu_slack(case, tokens, activations, logits, saved)
            ),
        )

    return kept


def logits_at_once(tokens: int, on_gpu: bool) -> int:
    """Tokens of a chunk, where there are so many in all. A processor reads the whole output head for each, be it of few
    tokens or of many: there its chunks are all of one length."""
    if on_gpu:
        return max(1, min(tokens, _CHUNK))
    return max(1, -(-tokens // max(1, -(-tokens // _CPU_CHUNK))))


def evaluated_at_once(on_gpu: bool) -> int:
    """Tokens of one batch, with its padding, where several rows are read together."""
    return _EVALUATED if on_gpu else _CPU_EVALUATED


def rounded_up(tokens: int, on_gpu: bool) -> int:
    """What a pass of so many tokens, or of kept places, is rounded up to (jobs.training.packed.sizes)."""
    grain = _grain(tokens, on_gpu)
    return grain * -(-tokens // grain)


def _grain(tokens: int, on_gpu: bool) -> int:
    return _GRAIN if on_gpu else min(_GRAIN, 1 << max(0, (tokens // _SIXTEENTH).bit_length() - 1))


def _behind_a_token(case: Case, on_gpu: bool) -> float:
    """Bytes of what the way back through an MLP needs besides what was kept."""
    shape, width = case.shape, case.width
    inner = shape.intermediate_size
    if not on_gpu:  # nothing is written over what was kept
        return (4 * inner - shape.hidden_size) * width
    rounded = 2 * inner if case.quantization == "fp8" else 0
    return (inner + shape.hidden_size) * width + rounded


def _unpacked(case: Case, plan: MemoryPlan) -> int:
    """Bytes of weights in the form that they are multiplied in: of the largest product; where 4-bit ones are computed
    twice, of a whole layer."""
    largest = 2 * case.shape.hidden_size * case.shape.intermediate_size
    if case.quantization == "nf4" and plan.recomputed and case.fused:
        largest = case.linear_parameters // max(case.shape.layers, 1)
    return largest * {"none": 0, "fp8": 1}.get(case.quantization, case.width)


def _evaluated(case: Case, on_gpu: bool) -> int:
    """Bytes of an evaluation, in which nothing is kept but all logits are made; of some at a time also widened, and
    their logarithms. What compares texts is read so before the first step, too, also where nothing is kept aside
    (jobs.tasks.comparing)."""
    if not case.training.validation_percent and case.sequences == 1:
        return 0
    row = case.longest_evaluated * case.sequences
    tokens = max(row, min(evaluated_at_once(on_gpu), case.training.batch_size * row))
    return (tokens * case.width + min(tokens, WIDENED) * 2 * FP32) * case.shape.vocab_size


def recorded(case: Case, plan: MemoryPlan) -> bool:
    """Whether its passes may become CUDA graphs. The child asks the packs of its first steps, which seldom are the
    longest of all."""
    shape = case.shape
    held = shape.parameters
    if case.quantization == "nf4":
        held -= case.linear_parameters // 2  # two 4-bit weights count as one number
    random = bool(getattr(case.params, "dropout", 0))
    if case.sequences > 1 or plan.offloaded:  # what weighs whole answers reads its numbers in between
        return False
    tokens = _EARLY * case.pack_tokens(plan)
    return 2 * held * tokens <= LAUNCH_BOUND * shape.layers and not (random and plan.recomputed)


def layer(case: Case) -> float:
    """Bytes a token of one layer."""
    shape, width = case.shape, case.width
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    modules = case.modules
    ranks = len(modules) * case.params.r * case.adapters / max(case.layers, 1)
    # Queries, keys, values and what attention makes of them, with a number a head; x A^T of every LoRA.
    found = (2 * queries + 2 * keys + ranks) * width + FP32 * shape.heads
    if case.fused:
        # Both norms: input, output, a scale. The MLP: gate and up; their product is made again.
        found += (4 * hidden + 2 * inner) * width + 2 * FP32
        if shape.model_type in _HEAD_NORMS:  # before and after norm and turn, and a scale a head
            found += 2 * (queries + keys) * width + FP32 * (shape.heads + shape.kv_heads)
        return found
    # transformers' norms keep their input in 32 bits; its MLP gate, its activation, up and their product.
    found += (4 if shape.model_type in _FOUR_NORMS else 2) * hidden * FP32 + (2 * hidden + 4 * inner) * width
    if shape.model_type in _HEAD_NORMS:
        found += (queries + keys) * FP32
    if "qkv_proj" in shape.leaves:  # one tensor of all three lives on in its values
        found += (queries + keys) * width
    if shape.model_type == "gemma2":  # capped attention is computed in full
        found += shape.heads * case.longest * (3 * FP32 + width)
    if case.method.name == "dora":  # each layer's output before it is scaled
        found += width * sum(module.out_features for module in modules) / max(case.layers, 1)
    if getattr(case.params, "dropout", 0):  # each LoRA's own input, and which of it was dropped
        found += (width + 1) * sum(module.in_features for module in modules) / max(case.layers, 1)
    return found


def _logit_bytes(case: Case, on_gpu: bool) -> int:
    """A GPU's slope stands where the logits stood; elsewhere they are widened, and their sum wants a copy."""
    if on_gpu:
        return case.width
    return 2 * FP32 + (case.width if case.width < FP32 else 0)


def _cpu_slack(case: Case, tokens: int, activations: float, logits: float, saved: float) -> int:
    """What is resident beyond what is in use. `tokens`: of the longest pack; `saved`: activations that are not kept,
    since layers are computed twice."""
    found = _CPU_HOLES * min(activations, _BEYOND) + _CPU_MORE_HOLES * max(0, activations - _BEYOND)
    found += _CPU_LOGIT_HOLES * logits + min(_CPU_AGAIN, saved / 3)
    if case.width < FP32:
        rows = max(1.0, tokens / max(case.lengths.mean, 1.0))
        sizes = _SPREAD * case.lengths.spread * rows**0.5 / _grain(tokens, on_gpu=False)
        whole = case.training.batch_size * case.training.gradient_accumulation
        if case.lengths.rows > whole and case.lengths.rows % whole:  # an epoch ends with a shorter step
            sizes += 1
        found += min(_COMPILED * sizes, _MOST_COMPILED)
        found += case.trainable * case.width  # a pass's gradients, before they are gathered
    return int(found)


def _joined(case: Case) -> int:
    """Bytes of the weights that layers of our own join into one: queries', keys' and values', gate and up."""
    if not case.fused or case.quantization not in ("none", "fp8"):
        return 0
    shape = case.shape
    outputs = (shape.heads + 2 * shape.kv_heads) * shape.head_dim + 2 * shape.intermediate_size
    return outputs * shape.hidden_size * shape.layers * case.width


def _slack(case: Case, plan: MemoryPlan, moving: float) -> int:
    """What a GPU's memory is reserved for beyond what is in use."""
    records = recorded(case, plan)
    found = _CUBLAS + _SLACK * moving + (_RECORDED_HOLES if records else _HOLES) * _joined(case)
    if records and case.lengths.spread:
        found += _OTHER_SIZES * moving
    return int(found)
