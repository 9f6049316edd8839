"""How well labels, tags, answers and numbers were predicted, by scikit-learn, seqeval and SQuAD's own definition.

Each returns (values that become curves, details for the page). Imports its libraries when it measures.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

MATRIX_LABELS = 50  # of a larger confusion matrix nobody sees anything
CONFUSED = 20  # pairs of labels listed
POINTS = 500  # of a scatter plot

Measured = tuple[dict[str, float], dict[str, Any]]


def one_label(given: Sequence[str], chosen: Sequence[str], labels: Sequence[str]) -> Measured:
    """Macro F1 is the mean over the labels that occur, so that a rare one counts as much as a frequent one."""
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    values = {
        "accuracy": float(accuracy_score(given, chosen)),
        "macro_f1": float(f1_score(given, chosen, average="macro", zero_division=0)),
    }
    pairs = Counter((g, c) for g, c in zip(given, chosen, strict=True) if g != c)
    details: dict[str, Any] = {
        "labels": list(labels),
        "per_label": _per_label(given, chosen, labels),
        "confused": [{"given": g, "chosen": c, "rows": rows} for (g, c), rows in pairs.most_common(CONFUSED)],
    }
    if len(labels) <= MATRIX_LABELS:  # rows: given; columns: chosen
        details["matrix"] = confusion_matrix(given, chosen, labels=list(labels)).tolist()
    return values, details


def several_labels(given: Sequence[Sequence[str]], chosen: Sequence[Sequence[str]], labels: Sequence[str]) -> Measured:
    """`exact_match` is the share of rows with every label right and none besides (subset accuracy)."""
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer(classes=list(labels)).fit(())
    truth, guess = binarizer.transform(given), binarizer.transform(chosen)
    occurring = [place for place in range(len(labels)) if truth[:, place].any() or guess[:, place].any()]
    values = {
        "exact_match": float((truth == guess).all(axis=1).mean()),
        "micro_f1": float(f1_score(truth, guess, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(truth, guess, average="macro", labels=occurring, zero_division=0))
        if occurring
        else 1.0,
    }
    return values, {"labels": list(labels), "per_label": _per_label(truth, guess, labels)}


def _per_label(given: Any, chosen: Any, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Of names, or of [rows, labels] with 0 and 1."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = list(labels) if isinstance(given, list) else list(range(len(labels)))
    found = precision_recall_fscore_support(given, chosen, labels=columns, average=None, zero_division=0)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(rows)}
        for label, p, r, f, rows in zip(labels, *found, strict=True)
    ]


def tags(given: list[list[str]], chosen: list[list[str]], labels: Sequence[str]) -> Measured:
    """Whole entities by seqeval where the tags are BIO's: right only with the right ends and the right type. Tags of
    another kind (parts of speech) are single labels."""
    from sklearn.metrics import accuracy_score, f1_score

    flat = [tag for row in given for tag in row], [tag for row in chosen for tag in row]
    values = {"accuracy": float(accuracy_score(*flat))}
    if not marks_entities(set(labels)):
        values["macro_f1"] = float(f1_score(*flat, average="macro", zero_division=0))
        return values, {"per_label": _per_label(*flat, sorted({*flat[0], *flat[1]}))}
    from seqeval.metrics import classification_report
    from seqeval.metrics.sequence_labeling import get_entities

    if not get_entities(given) and not get_entities(chosen):
        return values, {"per_label": []}  # nothing to find, and nothing found
    report = classification_report(given, chosen, output_dict=True, zero_division=0)
    whole = report["micro avg"]
    values |= {"entity_f1": float(whole["f1-score"])}
    values |= {"entity_precision": float(whole["precision"]), "entity_recall": float(whole["recall"])}
    per_label = [
        {
            "label": name,
            "precision": float(found["precision"]),
            "recall": float(found["recall"]),
            "f1": float(found["f1-score"]),
            "rows": int(found["support"]),  # entities
        }
        for name, found in report.items()
        if not name.endswith(" avg")
    ]
    return values, {"per_label": per_label}


def marks_entities(names: set[str]) -> bool:
    """Whether tags say where an entity begins and goes on: B-PER, I-PER, and O elsewhere."""
    return any(name.startswith("B-") for name in names) or (
        "O" in names and any(name.startswith("I-") for name in names)
    )


def answers(given: Sequence[Sequence[str]], found: Sequence[str]) -> Measured:
    """Exact match and F1 over words, each the best over a row's answers; no answer is right where there is none."""
    exact, overlap = [], []
    for right, text in zip(given, found, strict=True):
        wanted = list(right) or [""]
        exact.append(max(float(normal(text) == normal(one)) for one in wanted))
        overlap.append(max(word_f1(text, one) for one in wanted))
    rows = max(1, len(exact))
    return {"exact_match": sum(exact) / rows, "f1": sum(overlap) / rows}, {}


def normal(text: str) -> str:
    """As SQuAD's official script compares answers (Rajpurkar et al. 2016, evaluate-v1.1.py): lower case, without
    punctuation, articles and surplus white space."""
    letters = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def word_f1(text: str, wanted: str) -> float:
    """From the same script; where one of the two has no words, whether both have none (evaluate-v2.0.py)."""
    said, right = normal(text).split(), normal(wanted).split()
    common = sum((Counter(said) & Counter(right)).values())
    if not said or not right:
        return float(said == right)
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)


def numbers(given: Sequence[float], said: Sequence[float]) -> Measured:
    """Errors in the data's units. Correlations only where both vary: otherwise they have no meaning."""
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    values = {
        "mse": float(mean_squared_error(given, said)),
        "mae": float(mean_absolute_error(given, said)),
    }
    if len(given) > 1 and len(set(given)) > 1 and len(set(said)) > 1:
        values |= {
            "r2": float(r2_score(given, said)),
            "pearson": float(pearsonr(given, said).statistic),
            "spearman": float(spearmanr(given, said).statistic),
        }
    return values, {"points": [[float(g), float(s)] for g, s in zip(given, said, strict=True)][:POINTS]}
