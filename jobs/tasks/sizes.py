"""What a new head costs, from a model's sizes alone: its parameters, and what of the stored model it stands in for.

Held exactly against transformers' own models in tests/test_tasks_classifying.py.
"""

from __future__ import annotations

from jobs.shape import ModelShape

# Between text and labels these have a dense layer; those classify from a pooler, which the files may have.
_DENSE = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "electra", "distilbert", "mpnet", "roformer"}
)
_POOLED = frozenset({"bert", "albert", "deberta", "deberta-v2", "ernie", "nomic_bert"})
# The stored layers, by the first part of their names, that a new head goes on with; they are new where the files lack
# them: for every head, or for the one that judges whole texts.
_BETWEEN = {"modernbert": "head"}
_BETWEEN_SEQUENCE = {"eurobert": "dense"}


def sequence_head(shape: ModelShape, labels: int) -> int:
    """Parameters of the head that judges a whole text: one linear layer after the last token of a decoder or the first
    of an encoder, and what some encoders put between."""
    hidden = shape.hidden_size
    if shape.family != "encoder":
        return hidden * labels
    lacks_pooler = shape.model_type in _POOLED and not any(_is_pooler(end.name) for end in shape.ends)
    lacks_dense = shape.model_type in _BETWEEN_SEQUENCE and not _stored(shape, _BETWEEN_SEQUENCE)
    dense = shape.model_type in _DENSE or lacks_pooler or lacks_dense
    return token_head(shape, labels) + (hidden * hidden + hidden if dense else 0)


def token_head(shape: ModelShape, labels: int) -> int:
    """Parameters of the head that judges each token: one linear layer with biases, and what ModernBERT puts before."""
    hidden = shape.hidden_size
    lacks_between = shape.model_type in _BETWEEN and not _stored(shape, _BETWEEN)
    return hidden * labels + labels + (hidden * hidden + hidden if lacks_between else 0)


def body(shape: ModelShape, whole_text: bool) -> ModelShape:
    """What of a stored model a new head goes on with: no head that it had, and a pooler only where it is read.

    `whole_text`: the head judges whole texts, not tokens.
    """

    def goes(name: str) -> bool:
        if _is_pooler(name):
            return not whole_text or shape.model_type not in _POOLED
        first = name.partition(".")[0]
        return first != _BETWEEN.get(shape.model_type) and not (
            whole_text and first == _BETWEEN_SEQUENCE.get(shape.model_type)
        )

    gone = {end.name: end.size for end in shape.ends if goes(end.name)}
    return shape.model_copy(
        update={
            "parameters": shape.parameters - sum(gone.values()),
            "vectors": tuple(vector for vector in shape.vectors if vector.name not in gone),
            "ends": tuple(end for end in shape.ends if end.name not in gone),
        }
    )


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _stored(shape: ModelShape, named: dict[str, str]) -> bool:
    return any(end.name.partition(".")[0] == named[shape.model_type] for end in shape.ends)
