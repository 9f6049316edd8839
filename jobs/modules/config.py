"""adapter_config.json of an adapter that is not PEFT's: which kind it is, for which base, and what it was made with.

The files beside it: `adapter_model.safetensors` with the trained tensors by name; of a fully fine-tuned model `model/`
instead, a folder in transformers' own layout.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from jobs.errors import UserError
from jobs.frozen import Frozen

FILE = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
MODEL = "model"  # the folder of a whole model, for transformers; adapter_config.json in it would mislead that library


class Kind(StrEnum):
    """Stands where PEFT has its `peft_type`: plain PEFT says that it does not know it instead of misreading it."""

    BOTTLENECK = "GRAFT_BOTTLENECK"
    BITFIT = "GRAFT_BITFIT"
    FULL = "GRAFT_FULL"


class BottleneckConfig(Frozen):
    size: int
    nonlinearity: Literal["relu", "gelu", "silu"]
    dropout: float = 0.0
    places: tuple[str, ...]  # the linear layers whose output each gets an adapter


class TunedConfig(Frozen):
    peft_type: Kind
    task_type: str  # PEFT's word for what stands at the model's end
    base_model_name_or_path: str
    revision: str | None = None
    labels: int | None = None  # how many the task's new head tells apart; None where the model has its own head
    dtype: str = "float32"  # of a whole model's files
    bottleneck: BottleneckConfig | None = None

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(self.model_dump_json(indent=2), encoding="utf-8")


def read_config(folder: Path) -> TunedConfig | None:
    """None where the adapter is PEFT's. Raises OSError, and UserError where a later Graft wrote it."""
    values: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if values.get("peft_type") not in list(Kind):
        return None
    try:
        return TunedConfig(**values)
    except ValueError as error:
        raise UserError(
            f"The adapter in {folder} has an {FILE} that this version of Graft cannot read. Was it made by a later one?"
        ) from error
