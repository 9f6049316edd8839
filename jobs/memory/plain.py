"""What the plain loop (transformers' Trainer with PEFT) keeps for the backward pass.

What the base's own layers keep is counted here; what a method's keep besides is the method's to say
(Method.kept_a_token). Fitted on an H100 and on a CPU with benchmarks/memory.py.
"""

from __future__ import annotations

from jobs.memory.kept import FP32, Case, Kept
from jobs.memory.plan import MemoryPlan

# Products' workspaces and what the allocator keeps, measured on an H100 and an H200: the same for a model of 135
# million and of a billion parameters, but for a small share of what comes and goes.
_WORKSPACE, _SLACK = 700 << 20, 0.04
_GRADIENT_HOLES = 0.2  # of a whole model's gradients, between steps: activations do not quite fill their places
# On a CPU the measured peak is resident memory: with the holes that malloc leaves within a step.
_CPU_ACTIVATIONS = 1.6
_CPU_LOGIT_BYTES = 14


def kept(case: Case, plan: MemoryPlan) -> Kept:
    tokens, shape, width = case.micro_batch_tokens, case.shape, case.width
    on_gpu = case.hardware.device == "cuda"
    besides = case.method.kept_a_token(case.params, shape, width)  # of all its layers
    layer = _layer(case) + besides / max(case.layers, 1)
    activations = tokens * case.layers * layer
    if plan.recomputed:
        activations = tokens * (case.layers * shape.hidden_size * width + layer)
    outputs = shape.vocab_size if case.head is None else case.head // shape.hidden_size
    if not on_gpu:
        largest = max(shape.embedding_parameters, shape.hidden_size * shape.intermediate_size) * FP32
        return Kept(
            activations=int(activations * _CPU_ACTIVATIONS),
            logits=tokens * outputs * _CPU_LOGIT_BYTES,
            workspace=largest // 4,
        )
    logits = tokens * outputs * 3 * FP32  # log-probabilities, the loss's gradient, the logits' gradient
    slack = _SLACK * (activations + logits)
    if case.method.trains_base:
        slack += _GRADIENT_HOLES * shape.parameters * FP32
    return Kept(activations=int(activations), logits=logits, workspace=int(_WORKSPACE + slack))


def _layer(case: Case) -> float:
    """Bytes a token of one of the base's layers, with nothing beside it."""
    shape, width = case.shape, case.width
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if case.hardware.device == "cuda" and (case.lengths.spread or case.method.positions(case.params)):
        keys = queries  # under a mask, keys and values are repeated for each query
    # Norms keep their input in 32 bits, twice a layer; attention keeps queries, keys, values and its output; the gated
    # MLP keeps gate, its activation and up.
    found = 2 * hidden * FP32 + (2 * queries + 2 * keys + 3 * inner) * width
    if width < FP32 and case.method.quantization(case.params) != "none":
        found += 5 * inner * (FP32 - width) // 2  # 32-bit norms before quantized layers leave much in 32 bits
    return found
