"""Which tokens a span trains: those that begin inside it, whatever the tokenizer does to the text."""

from __future__ import annotations

import random
from functools import cache

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jobs.data.tokens import Offsets, trained_tokens
from tests.tiny import build_tokenizer

SAID = ["the quick brown fox jumps over the lazy dog, said the captain of the ship"] * 50


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "bytes":
        return build_tokenizer().backend_tokenizer
    if kind == "bytes, trimmed":  # offsets without the space before a word, as GPT-2's; begins and ends with a token
        trimmed = build_tokenizer().backend_tokenizer
        trimmed.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=True),
                processors.TemplateProcessing(
                    single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
                ),
            ]
        )
        return trimmed
    if kind == "words":  # BERT: accents and capitals go, white space stands for nothing
        words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        words.normalizer = normalizers.BertNormalizer(strip_accents=True, lowercase=True)
        words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        words.train_from_iterator(SAID, trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[UNK]", "[CLS]"]))
        words.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
        return words
    pieces = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # Llama 2
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces.decoder = decoders.Metaspace()
    pieces.train_from_iterator(SAID, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>"]))
    return pieces


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("kind", ["bytes", "bytes, trimmed", "words", "pieces"])
def test_a_token_is_trained_where_it_begins_inside_a_span(kind: str, special: bool) -> None:
    chosen = random.Random(0)
    pieces = ["the ", "fox", " jumps", "é", "🦊", "<|im_end|>", "<|im_start|>", "\n", "  ", "ＱＱ", "x", "<s>"]
    for _ in range(300):
        text = "".join(chosen.choices(pieces, k=chosen.randint(0, 12)))
        cuts = sorted(chosen.choices(range(len(text) + 1), k=4))
        spans = [(cuts[0], cuts[1]), (cuts[2], cuts[3])]
        encoding = tokenizer(kind).encode(text, add_special_tokens=special)
        places = encoding.offsets
        inner = [place for place, (_, end) in enumerate(places) if end]
        begin, end = (inner[0], inner[-1] + 1) if inner else (0, 0)
        wanted = [
            begin <= token < end and any(start <= places[token][0] < stop for start, stop in spans)
            for token in range(len(places))
        ]
        assert trained_tokens(encoding, len(places), spans) == wanted, (text, spans, places)


def test_offsets_are_a_list_that_is_made_when_it_is_read() -> None:
    encoding = tokenizer("bytes").encode("the fox é🦊 jumps")
    offsets = Offsets(encoding, len(encoding) - 1)
    wanted = encoding.offsets[:-1]
    assert offsets == wanted and len(offsets) == len(wanted) and list(offsets) == wanted
    assert offsets[:3] == wanted[:3] and offsets[1:3] == wanted[1:3] and offsets[-1] == wanted[-1]
    assert offsets[:99] == wanted and offsets != wanted[:-1]
