"""The grid once more on the real starter model: every method attaches or says why not, counts exactly, learns, resumes,
is itself again after saving, loading and merging, and the playground answers with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.methods import all_methods, method
from tests.test_methods import (
    CPU,
    TOKENS,
    Base,
    Tuned,
    answers_again_when_loaded,
    counts_exactly,
    learns_and_resumes,
    load_base,
    the_playground_answers,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# What a method needs to be told, or would need more memory for than a test may take: HRA keeps each mirror of each
# layer as a matrix, 9 GB for this model.
SETTINGS = {
    "trainable-tokens": {"tokens": TOKENS},
    "hra": {"depth": "last", "depth_layers": 4},
    "boft": {"depth": "last", "depth_layers": 10},
}


@pytest.fixture(scope="module")
def base(starter: Path) -> Base:
    return load_base(starter, "CAUSAL_LM")


@pytest.fixture(scope="module")
def engine(starter: Path) -> Any:
    from tests.test_engine import load_engine

    return load_engine(starter)


@pytest.mark.parametrize("name", all_methods())
def test_a_method_on_the_starter_model(name: str, base: Base, engine: Any, tmp_path: Path) -> None:
    chosen = method(name)
    params = type(chosen).Params(**SETTINGS.get(name, {}))
    if problems := chosen.check(params, base.shape, CPU):
        assert name == "bitfit"
        assert all(problem.startswith("You ") and problem.endswith(".") for problem in problems)
        return
    tuned = Tuned(chosen, base, params)
    counts_exactly(tuned)
    learns_and_resumes(tuned)
    answers_again_when_loaded(tuned, tmp_path / "adapter")
    the_playground_answers(tuned, engine, tmp_path / "adapter")
