"""Quick, Balanced, Thorough: whole settings for someone who does not want to choose each."""

from __future__ import annotations

from typing import Any, Literal

from jobs.errors import UserError
from jobs.frozen import Frozen


class Preset(Frozen):
    name: str
    label: str
    help: str
    training: dict[str, Any]  # over TrainingParams' defaults
    size: Literal[0, 1, 2]  # small, medium or large: which of a method's sizes (jobs.methods.base)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        # A small dataset's epochs have too few steps to learn from: each preset has its least.
        Preset(
            name="quick",
            label="Quick",
            help="At most 80 steps: shows soon whether the data teaches what you mean.",
            training={"epochs": 2, "min_steps": 80, "max_steps": 80, "evaluations": 2},
            size=0,
        ),
        Preset(
            name="balanced",
            label="Balanced",
            help="A sound run for most datasets.",
            training={"epochs": 3, "min_steps": 120, "evaluations": 4},
            size=1,
        ),
        Preset(
            name="thorough",
            label="Thorough",
            help="Sees the data twice as often with a larger adapter; stops early where it starts to memorise.",
            training={"epochs": 6, "min_steps": 240, "evaluations": 8, "schedule": "cosine"},
            size=2,
        ),
    )
}


def preset(name: str) -> Preset:
    """Raises UserError for a name that is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise UserError(f"There is no preset {name!r}. Choose one of: {', '.join(PRESETS)}.") from None
