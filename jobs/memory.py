"""The memory estimate: what a run will need at its peak, part by part, from sizes alone. Reads no weights.

Counts what the plain path (transformers' Trainer with PEFT) keeps for the backward pass. Sources of the sizes:
Korthikanti et al. 2022 (activations a layer), Dettmers et al. 2022 (8 bits and a scale a row), Dettmers et al. 2023
(NF4: 4 bits and a scale per 64 weights, the scales again in 8 bits with double quantization).
"""

from __future__ import annotations

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.methods.base import Method
from jobs.shape import ModelShape
from jobs.spec import TrainingParams

FP32 = 4
_NF4_BITS = {True: 4.127, False: 4.5}  # bits a weight, scales included: with and without double quantization
_INT8_BITS = 8.1  # a scale in 32 bits for each row
_PROCESS = 530 << 20  # a trainer's imports on a CPU, measured
_MEASURES = 80 << 20  # what a new head's measures import besides (scikit-learn), measured with the starter encoder
# On a CPU the measured peak is resident memory, and the allocator gives little of what a step freed back.
# Fitted with benchmarks/memory.py on the starter's shape.
_CPU_ACTIVATIONS = 1.53
_CPU_LOGIT_BYTES = 28
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


def estimate(
    shape: ModelShape,
    method: Method,
    params: Frozen,
    training: TrainingParams,
    hardware: Hardware,
    longest_row: int | None = None,
    sequences: int = 1,
    head: int | None = None,
) -> Estimate:
    """The peak of one run.

    `longest_row` in tokens, where the dataset has been checked: a micro-batch never gets longer than that.
    `sequences`: the texts that one row puts through the model at once (Task.sequences). `head`: the parameters of a
    task's new head (Task.new_head).
    """
    width = compute_bytes(hardware)
    length = min(training.max_length, longest_row or training.max_length)
    tokens = training.batch_size * sequences * (length + method.positions(params))
    trainable = method.trainable(params, shape) + (head or 0)
    outputs = shape.vocab_size if head is None else head // shape.hidden_size
    per_token = _activations_a_token(shape, training.recompute, width, method.quantization(params) != "none")
    return Estimate(
        base=_base(shape, method, params, width, hardware),
        adapter=(head or 0 if method.trains_base else trainable) * FP32,  # adapter weights are kept in 32 bits
        gradients=trainable * FP32,
        optimizer=trainable * 2 * FP32,  # AdamW's two moments
        activations=int(tokens * per_token * _overhead(hardware)),
        logits=tokens * outputs * _logit_bytes(hardware),
        workspace=_workspace(shape, hardware)
        + (_MEASURES if head is not None and hardware.device == "cpu" else 0)
        + method.held_memory(params, shape, training.recompute),
    )


def fits(needs: Estimate, hardware: Hardware) -> bool:
    """Whether the free memory holds it, with what a GPU takes beside the allocator."""
    return needs.total + (CUDA_CONTEXT if hardware.device == "cuda" else 0) <= hardware.memory_free


def _base(shape: ModelShape, method: Method, params: Frozen, width: int, hardware: Hardware) -> int:
    if method.trains_base:  # in 32 bits; autocast's narrow copy of a matrix lives from forward to backward
        return shape.parameters * FP32 + (shape.parameters * width if width < FP32 else 0)
    held = method.quantization(params)
    if held == "none" or hardware.device == "cpu":
        # On a CPU the whole model is in memory before it is quantized: the narrow weights do not lower the peak.
        return shape.parameters * width
    bits = _INT8_BITS if held == "int8" else _NF4_BITS[getattr(params, "double_quantization", False)]
    # PEFT's preparation for quantized training casts what stays unquantized (embeddings, norms) to 32 bits; autocast
    # keeps a narrow copy of the output head beside it.
    copy = shape.embedding_parameters * width if width < FP32 else 0
    return int(shape.linear_parameters * bits / 8) + (shape.parameters - shape.linear_parameters) * FP32 + copy


def _activations_a_token(shape: ModelShape, recompute: bool, width: int, quantized: bool) -> int:
    """Bytes kept for the backward pass, a token."""
    layers = shape.layers + shape.decoder_layers  # as if the text that is written were as long as the one that is read
    hidden, inner = shape.hidden_size, shape.intermediate_size
    attention = shape.heads * shape.head_dim
    grouped = shape.kv_heads * shape.head_dim
    # Norms keep their input in 32 bits, twice a layer; attention keeps queries, keys, values and its output; the gated
    # MLP keeps gate, its activation, up and their product.
    layer = 2 * hidden * FP32 + (2 * attention + 2 * grouped + 4 * inner) * width
    if width < FP32:
        layer += (4 * hidden + inner) * width  # autocast gives most adapters their own copy of their input
        if quantized:  # 32-bit norms before 4-bit layers leave much of the MLP in 32 bits
            layer += 5 * inner * (FP32 - width) // 2
    if not recompute:
        return layers * layer
    return layers * hidden * width + layer  # every layer's input, and one layer in full


def _overhead(hardware: Hardware) -> float:
    return _CPU_ACTIVATIONS if hardware.device == "cpu" else 1.0


def _logit_bytes(hardware: Hardware) -> int:
    """Bytes a logit in the backward pass, the peak: log-probabilities, the loss's gradient, the logits' gradient in
    32 bits and in 16."""
    return _CPU_LOGIT_BYTES if hardware.device == "cpu" else 3 * FP32 + 2


def _workspace(shape: ModelShape, hardware: Hardware) -> int:
    largest = max(shape.embedding_parameters, shape.hidden_size * shape.intermediate_size) * FP32
    return (_PROCESS if hardware.device == "cpu" else 0) + largest // 4
