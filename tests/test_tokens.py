"""Which tokens a span trains: those that begin inside it, whatever the tokenizer does to the text."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jobs.data import tokens
from jobs.data.tokens import Offsets, tokenise
from tests.tiny import build_tokenizer

SAID = ["the quick brown fox jumps over the lazy dog, said the captain of the ship"] * 50


@cache
def tokenizer(kind: str) -> Any:
    fast = build_tokenizer()
    if kind == "bytes":
        return fast
    if kind == "bytes, trimmed":  # offsets without the space before a word, as GPT-2's
        fast.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        return fast
    if kind == "bytes, some unknown":  # SmolLM2's: a byte without a token vanishes
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.train_from_iterator(SAID, trainers.BpeTrainer(vocab_size=200, special_tokens=["<|im_start|>"]))
        return PreTrainedTokenizerFast(tokenizer_object=backend)
    if kind == "bytes, composed":  # Qwen's
        fast.backend_tokenizer.normalizer = normalizers.NFC()
        return fast
    if kind == "bytes, begun and ended":  # Llama 3's
        ends = processors.TemplateProcessing(
            single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
        )
        fast.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), ends])
        return fast
    if kind == "words":  # BERT: accents and capitals go, white space stands for nothing
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(strip_accents=True, lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.train_from_iterator(SAID, trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[UNK]", "[CLS]"]))
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    else:  # Llama 2
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Metaspace()
        backend.train_from_iterator(SAID, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


KINDS = (
    "bytes",
    "bytes, trimmed",
    "bytes, some unknown",
    "bytes, composed",
    "bytes, begun and ended",
    "words",
    "pieces",
)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_trained_where_it_begins_inside_a_span(kind: str, special: bool) -> None:
    chosen = random.Random(0)
    pieces = [
        "the ",
        "fox",
        " jumps",
        "é",
        "e\u0301",
        "🦊",
        "<|im_end|>",
        "<|im_start|>",
        "\n",
        "  ",
        " ",
        "ＱＱ",
        "<s>",
    ]
    texts = ["".join(chosen.choices(pieces, k=chosen.randint(0, 12))) for _ in range(400)]
    tok = tokenizer(kind)
    plain = tok(texts, add_special_tokens=special, return_offsets_mapping=True)
    for text, found, ids, places in zip(
        texts, tokenise(tok, texts, special), plain["input_ids"], plain["offset_mapping"], strict=True
    ):
        if special and kind == "bytes, begun and ended" and text.endswith(tok.eos_token):
            ids, places = ids[:-1], places[:-1]  # ended once is enough
        assert found.ids == ids
        cuts = sorted(chosen.choices(range(len(text) + 1), k=4))
        spans = [(cuts[0], cuts[1]), (cuts[2], cuts[3])]
        inner = [place for place, (_, end) in enumerate(places) if end]
        begin, end = (inner[0], inner[-1] + 1) if inner else (0, 0)
        wanted = [
            begin <= token < end and any(start <= places[token][0] < stop for start, stop in spans)
            for token in range(len(places))
        ]
        assert found.trained(spans) == wanted, (text, spans, places)
        assert found.offsets == places


@pytest.mark.parametrize("kind", KINDS)
def test_only_tokenizers_that_keep_every_byte_are_counted(kind: str) -> None:
    assert (tokens._byte_table(tokenizer(kind)) is not None) == kind.startswith("bytes")


@pytest.mark.parametrize(
    "change",
    [
        lambda tok: setattr(tok, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda tok: setattr(tok, "normalizer", normalizers.Lowercase()),
        lambda tok: setattr(tok, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda tok: tok.add_tokens([AddedToken("<b>", lstrip=True)]),
    ],
)
def test_a_tokenizer_that_changes_the_text_is_asked_instead(change: Any) -> None:
    tok = build_tokenizer()
    change(tok.backend_tokenizer)
    assert tokens._byte_table(tok) is None


def test_tokens_added_later_are_counted_too() -> None:
    tok = build_tokenizer()
    text = "the fox<new token>jumps"
    assert tokenise(tok, [text, text], False)[0].trained([(7, 18)]) is not None
    tok.add_tokens(["<new token>"])
    found, _ = tokenise(tok, [text, text], False)
    assert found.trained([(7, 18)]) == [start == 7 for start, _ in found.offsets]
    assert found._count([(7, 18)]) == found.trained([(7, 18)])  # type: ignore[attr-defined]


@pytest.mark.parametrize("own", [True, False])
def test_ordinary_answers_are_counted_without_asking(own: bool, starter: Path) -> None:
    tok = build_tokenizer() if own else AutoTokenizer.from_pretrained(starter)
    text = "<|im_start|>user\nthe fox é 🦊?<|im_end|>\n<|im_start|>assistant\nthe dog<|im_end|>\n"
    start = text.index("the dog")
    found, _ = tokenise(tok, [text, text], False)
    assert sum(found._count([(start, len(text) - 1)]) or ()) == sum(  # type: ignore[attr-defined]
        start <= place < len(text) - 1 for place, _ in found.offsets
    )


def test_offsets_are_a_list_that_is_made_when_it_is_read() -> None:
    encoding = build_tokenizer().backend_tokenizer.encode("the fox é🦊 jumps")
    offsets = Offsets(lambda: encoding, len(encoding) - 1)
    wanted = encoding.offsets[:-1]
    assert offsets == wanted and len(offsets) == len(wanted) and list(offsets) == wanted
    assert offsets[:3] == wanted[:3] and offsets[1:3] == wanted[1:3] and offsets[-1] == wanted[-1]
    assert offsets[:99] == wanted and offsets != wanted[:-1]
