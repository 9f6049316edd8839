"""How predictions and evaluations look: everything is there, and nothing that a person wrote becomes HTML."""

from __future__ import annotations

import pytest

from app.evaluation import evaluation_html
from app.pages.predict import answers_html
from app.predictions import percent_text, prediction_html
from jobs.service.predictions import Answered
from jobs.tasks.predictions import FoundAnswer, Labels, LabelScore, Number, Prediction, Span, Spans, Written

EVIL = "<script>alert(1)</script> ${1+1} {{value}}"
SPAN = Span(start=0, end=len(EVIL), text=EVIL, tag=EVIL, confidence=0.5)
SAID: dict[str, tuple[Prediction, str]] = {
    "labels": (Labels(labels=(LabelScore(label=EVIL, probability=0.75),), chosen=(EVIL,)), "75 %"),
    "no label": (Labels(labels=(LabelScore(label=EVIL, probability=0.25),), chosen=()), "No label reaches 50 %"),
    "spans": (Spans(text=EVIL + " rest", spans=(SPAN,)), " rest"),
    "answer": (FoundAnswer(text="me", start=len(EVIL) + 1, end=len(EVIL) + 3, confidence=0.991), "<mark>me</mark>"),
    "no answer": (FoundAnswer(text="", start=None, end=None, confidence=0.9), "No answer in this passage"),
    "number": (Number(value=3.14159), "3.142"),
    "text": (Written(text=EVIL), "alert(1)"),
}


def harmless(html: str) -> bool:
    return "<script" not in html and "${" not in html and "{{" not in html


@pytest.mark.parametrize("name", SAID)
def test_a_prediction_is_shown_and_stays_text(name: str) -> None:
    said, shows = SAID[name]
    html = prediction_html(said, {"context": f"{EVIL} me"})
    assert shows in html
    assert harmless(html)


def test_an_evaluation_shows_every_part_that_it_has_and_no_other() -> None:
    details = {
        "labels": [EVIL, "b"],
        "matrix": [[3, 1], [0, 2]],
        "per_label": [{"label": EVIL, "precision": 0.75, "recall": 1.0, "f1": 0.86, "rows": 4}],
        "confused": [{"given": EVIL, "chosen": "b", "rows": 1}],
        "samples": [{"row": 7, "text": EVIL, "expected": "b", "predicted": EVIL, "confidence": 0.5}],
    }
    html = evaluation_html(40, details)
    assert harmless(html)
    for part in ("step 40", "Which labels are confused", "--share:0.750", "Each label by itself", "0.86", "Row 7"):
        assert part in html
    assert "What is confused most" not in html  # the matrix shows it
    assert "sample-row wrong" in html
    assert evaluation_html(1, {}) == ""
    assert "What is confused most" in evaluation_html(1, {"confused": details["confused"]})


def test_tags_are_marked_in_the_samples_and_numbers_stand_against_each_other() -> None:
    span = {"start": 0, "end": 3, "text": "Ada", "tag": "PER", "confidence": 0.9}
    sample = {
        **{"row": 1, "text": "Ada ran", "expected": "PER: Ada", "predicted": "nothing", "confidence": 0.9},
        **{"expected_spans": [span], "predicted_spans": []},
    }
    assert "Ada<small>PER</small></mark> ran" in evaluation_html(1, {"samples": [sample]})
    html = evaluation_html(1, {"points": [[1.0, 2.0], [3.0, 2.5]], "samples": [sample]})
    assert html.count("<circle") == 2
    assert "sample-row wrong" not in html  # a number is near or far


@pytest.mark.parametrize(
    ("share", "text"), [(0.934, "93 %"), (1, "100 %"), (0, "0 %"), (0.004, "0.4 %"), (0.997, "99.7 %")]
)
def test_shares_read_as_percent(share: float, text: str) -> None:
    assert percent_text(share) == text


def test_a_tag_has_one_colour_on_every_card_whoever_says_it_first() -> None:
    def said(name: str, *tags: str) -> Answered:
        spans = tuple(Span(start=at, end=at + 1, text="a", tag=tag, confidence=1) for at, tag in enumerate(tags))
        found = (Spans(text="aaa", spans=spans),)
        return Answered(adapter_id=1, name=name, task="tagging", predictions=found, baseline=None, seconds=0.1)

    html = answers_html(
        [said("one", "PER", "LOC"), said("two", "LOC")], [("three", "Loading")], {"text": "aaa"}, ["LOC", "PER"]
    )
    assert html.count('<mark class="tag-0" title="LOC') == 2
    assert html.count('<mark class="tag-1" title="PER') == 1
    assert '<p class="waiting">Loading ...</p>' in html
