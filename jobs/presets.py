"""Quick, Balanced, Thorough: whole settings for someone who does not want to choose each."""

from __future__ import annotations

from typing import Any

from jobs.errors import UserError
from jobs.frozen import Frozen


class Preset(Frozen):
    name: str
    label: str
    help: str
    training: dict[str, Any]  # over TrainingParams' defaults
    method: dict[str, Any]  # over the method's defaults; names the method lacks are passed over


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="quick",
            label="Quick",
            help="One minute to see whether the data teaches what you mean.",
            training={"epochs": 2, "max_steps": 40, "evaluations": 2},
            method={"r": 8, "alpha": 16},
        ),
        Preset(
            name="balanced",
            label="Balanced",
            help="A sound run for most datasets.",
            training={"epochs": 3, "evaluations": 4},
            method={"r": 16, "alpha": 32},
        ),
        Preset(
            name="thorough",
            label="Thorough",
            help="Sees the data more often with a larger adapter; stops early where it starts to memorise.",
            training={"epochs": 6, "evaluations": 8, "gradient_accumulation": 2, "schedule": "cosine"},
            method={"r": 32, "alpha": 64, "dropout": 0.05},
        ),
    )
}


def preset(name: str) -> Preset:
    """Raises UserError for a name that is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise UserError(f"There is no preset {name!r}. Choose one of: {', '.join(PRESETS)}.") from None
