"""Tiny random decoders of the families that the packed loop trains, each with what is particular about it."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 6  # tokens that a sliding window sees: documents in the tests are longer
PARTICULARS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True, "mlp_bias": True, "attention_bias": True},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},  # and biases
    "qwen3": {"tie_word_embeddings": True},  # and norms of queries and keys
    "gemma2": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {"sliding_window": WINDOW, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2},
    "phi3": {"sliding_window": WINDOW},  # and one matrix for queries, keys and values
    "smollm3": {"no_rope_layer_interval": 2},
}


def build(family: str, **over: Any) -> Any:
    """A PreTrainedModel of the family with random weights, its norms and biases included."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {**SIZES, **PARTICULARS[family], **over}
    config = AutoConfig.for_model(family, **sizes)
    config._attn_implementation = "eager"  # the reference: capped logits, too
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(8 if "embed" not in name else 20)  # attention and caps must have something to decide
    return model
