"""graft.json beside an adapter's weights: what the head in them means. The weights alone do not know their labels.

Written by the training child with every checkpoint, read by whoever answers with the adapter, here or elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from jobs.errors import UserError
from jobs.frozen import Frozen

FILE = "graft.json"


class AdapterCard(Frozen):
    version: Literal[1] = 1
    base_model: str
    task: str
    task_params: dict[str, Any] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()  # in the order of the head's outputs
    facts: dict[str, Any] = Field(default_factory=dict)  # what the task found out about the dataset
    max_length: int  # tokens

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_card(folder: Path) -> AdapterCard:
    """Raises UserError where there is none, or one of a later version."""
    try:
        return AdapterCard.model_validate_json((folder / FILE).read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"The adapter in {folder} has no {FILE}, so nobody knows what its labels are called. Train it again."
        ) from None
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{FILE} in {folder} cannot be read ({type(error).__name__}). Was a later Graft here?"
        ) from error
