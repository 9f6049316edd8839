"""What is wrong with a setting, in the form's own words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.fields import number_text, problems_of
from jobs.spec import TrainingParams


def said(**settings: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        TrainingParams(**settings)
    return problems_of(TrainingParams, caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 5}, "You set Learning rate to 5: the most is 1."),
        ({"learning_rate": 0}, "You set Learning rate to 0: it must be more than 0."),
        ({"batch_size": 0}, "You set Micro-batch to 0: the least is 1."),
        ({"batch_size": 2.5}, "You set Micro-batch to 2.5: it must be a whole number."),
        ({"batch_size": "many"}, "You set Micro-batch to 'many': it must be a whole number from 1 up to 256."),
        ({"epochs": None}, "Epochs is empty. Give a number above 0 up to 100."),
        (
            {"schedule": "steep"},
            "You set Learning-rate schedule to 'steep': choose one of linear, cosine, constant.",
        ),
        ({"speed": 1}, "There is no setting 'speed'."),
    ],
)
def test_a_wrong_setting_is_told_with_its_title_and_limit(settings: dict[str, Any], words: str) -> None:
    assert said(**settings) == [words]


def test_all_the_wrong_settings_are_told_together() -> None:
    assert len(said(learning_rate=5, batch_size=0, seed=-1)) == 3


@pytest.mark.parametrize(
    ("value", "text"), [(2e-4, "0.0002"), (1e-9, "1e-09"), (3.0, "3"), (131_072, "131072"), (0.05, "0.05")]
)
def test_a_number_reads_as_a_person_writes_it(value: float, text: str) -> None:
    assert number_text(value) == text
