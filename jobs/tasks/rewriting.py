"""What the tasks share that turn one text into another: settings, the instruction that the columns' names suggest, and
measures of what the model writes: chrF and BLEU (sacrebleu), ROUGE (rouge-score).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from jobs.data.columns import Mapping, Shape, plain_name
from jobs.data.conversation import conversation
from jobs.frozen import Frozen

SHOWN = 20  # texts that the page shows with what was written
_LANGUAGES = {
    **{"ar": "Arabic", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English"},
    **{"es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi"},
    **{"hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch"},
    **{"no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish"},
    **{"sw": "Swahili", "ta": "Tamil", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu"},
    **{"vi": "Vietnamese", "zh": "Chinese"},
}
_NAMES = {name.lower(): name for name in _LANGUAGES.values()} | _LANGUAGES
_SUMMARIES = ("summary", "highlights", "abstract", "tldr", "headline")
_WORD = re.compile(r"\w+")


class RewriteParams(Frozen):
    instruction: str = Field(
        "",
        max_length=500,
        title="Instruction",
        description='Stands before every text, in training and afterwards: "Translate English into German:". '
        "With one the model knows at once what is asked.",
    )
    measured: int = Field(
        16,
        ge=0,
        le=1_000,
        title="Texts written at each evaluation",
        description="So many validation rows are written out by the model and measured (chrF, BLEU, ROUGE). More make "
        "the measures surer and each evaluation longer.",
        json_schema_extra={"zero": "off"},
    )
    longest: int = Field(
        128,
        ge=1,
        le=4_096,
        title="Longest text written",
        description="Tokens that the model writes at most, in evaluations and in the playground.",
    )


def pair(row: dict[str, Any], mapping: Mapping) -> tuple[str, str]:
    """The row's source and what it is turned into. Raises RowProblem."""
    turns = conversation(row, mapping)
    source = "\n\n".join(turn["content"] for turn in turns[:-1] if turn["role"] != "system")
    return source, turns[-1]["content"]


def suggested_instruction(mapping: Mapping, translate: str, summarize: str) -> str:
    """What the columns' names say is done; "" where they say nothing. `translate` has places for two languages."""
    if mapping.shape is not Shape.REWRITE:
        return ""
    source, target = (plain_name(mapping.columns[role].rsplit(".", 1)[-1]) for role in ("source", "target"))
    languages = [_NAMES.get(name.split()[0]) if name else None for name in (source, target)]
    if languages[0] and languages[1]:
        return translate.format(*languages)
    return summarize if target in _SUMMARIES else ""


def measures(written: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """chrF, BLEU and ROUGE F1 of whole texts, each from 0 to 100, and the share that is right to the letter.

    ROUGE's words are runs of letters and digits of any alphabet; the package's own know a-z only.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import BLEU, CHRF

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, tokenizer=_Words())
    scores = [scorer.score(right, said) for right, said in zip(expected, written, strict=True)]
    return {
        "chrf": CHRF().corpus_score(list(written), [list(expected)]).score,
        "bleu": BLEU().corpus_score(list(written), [list(expected)]).score,
        **{kind: 100 * sum(score[kind].fmeasure for score in scores) / len(scores) for kind in kinds},
        "exact_match": sum(a == b for a, b in zip(written, expected, strict=True)) / len(scores),
    }


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())
