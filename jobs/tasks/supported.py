"""Which kinds of model transformers has with which new head, so that a plan can say so without loading it.

Decoders are listed where there is one, encoders where there is none. A test holds this against the installed
transformers: after an upgrade it says what to add.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


DECODERS: dict[str, frozenset[str]] = {
    "sequence": _names(
        """
        arcee axk1 axk2 bart big_bird bigbird_pegasus biogpt bloom cohere_compass_text ctrl data2vec-text
        deepseek_v2 deepseek_v3 diffllama doge exaone4 falcon gemma gemma2 gemma3 gemma3_text glm glm4 gpt-sw3
        gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj helium hunyuan_v1_dense hunyuan_v1_moe jamba jetmoe llama
        mbart megatron-bert minicpm3 minimax ministral ministral3 mistral mixtral modernbert-decoder mpt mvp
        nemotron olmo olmo2 olmo3 openai-gpt opt persimmon phi phi3 phimoe plbart qwen2 qwen2_moe qwen3 qwen3_5
        qwen3_5_text qwen3_moe qwen3_next reformer rembert roberta-prelayernorm roc_bert seed_oss smollm3
        stablelm starcoder2 xlm xlnet xmod zamba zamba2
        """
    ),
    "token": _names(
        """
        apertus arcee axk1 axk2 big_bird biogpt bloom data2vec-text deepseek_v3 diffllama exaone4 falcon gemma
        gemma2 glm glm4 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss helium llama megatron-bert minimax
        ministral ministral3 mistral mixtral mpt nemotron persimmon phi phi3 qwen2 qwen2_moe qwen3 qwen3_5
        qwen3_moe qwen3_next rembert roberta-prelayernorm roc_bert seed_oss smollm3 stablelm starcoder2 xlm
        xlnet xmod
        """
    ),
    "span": _names(
        """
        arcee bart big_bird bigbird_pegasus bloom data2vec-text diffllama exaone4 falcon gpt2 gpt_neo gpt_neox
        gptj llama mbart megatron-bert minimax ministral ministral3 mistral mixtral mpt mvp nemotron opt qwen2
        qwen2_moe qwen3 qwen3_moe qwen3_next reformer rembert roberta-prelayernorm roc_bert seed_oss smollm3 xlm
        xlnet xmod
        """
    ),
}
ENCODER_DECODERS = _names(
    "bart bigbird_pegasus led longt5 mt5 mvp pegasus pegasus_x switch_transformers t5 t5gemma umt5"
)
# Those that are told by tokens of their own which languages a text is in and should be in, or keep two vocabularies.
OF_LANGUAGES = _names("fsmt m2m_100 marian mbart nllb-moe plbart seamless_m4t seamless_m4t_v2")
NOT_ENCODERS: dict[str, frozenset[str]] = {"span": _names("eurobert nomic_bert")}


def has_head(head: str, model_type: str, encoder: bool) -> bool:
    """Whether a model of this type can be given the head; `model_type` as config.json has it."""
    if encoder:
        return model_type not in NOT_ENCODERS.get(head, ())
    return model_type in DECODERS[head]
