"""RunSpec: everything that decides a run, frozen, with a JSON round trip. The child needs nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.data.columns import Mapping
from jobs.data.mends.base import MendRef
from jobs.frozen import Frozen

Schedule = Literal["linear", "cosine", "constant"]
Optimizer = Literal["adamw", "adamw-8bit", "adamw-paged", "adamw-paged-8bit"]


class TrainingParams(Frozen):
    """The settings every method shares. Title, description and limits make the form."""

    learning_rate: float = Field(
        1e-3,
        gt=0,
        le=1,
        title="Learning rate",
        description="How far each step moves. LoRA wants about 1e-3 on small models, 2e-4 on large ones.",
    )
    epochs: float = Field(
        3,
        gt=0,
        le=100,
        title="Epochs",
        description="How often the whole dataset is seen. A small one is seen more often, until Least steps are taken.",
    )
    max_steps: int = Field(
        0,
        ge=0,
        le=1_000_000,
        title="Most steps",
        description="Ends the run after this many steps.",
        json_schema_extra={"zero": "by the epochs"},
    )
    min_steps: int = Field(
        0,
        ge=0,
        le=1_000_000,
        title="Least steps",
        description="A small dataset is seen more often than the epochs say, until it has so many steps.",
        json_schema_extra={"zero": "by the epochs"},
    )
    batch_size: int = Field(
        4, ge=1, le=256, title="Micro-batch", description="Rows computed at once. Memory grows with it."
    )
    gradient_accumulation: int = Field(
        1,
        ge=1,
        le=256,
        title="Gradient accumulation",
        description="Micro-batches gathered into one step: a larger effective batch at no extra memory.",
    )
    max_length: int = Field(
        512,
        ge=16,
        le=131_072,
        title="Maximum length",
        description="Tokens a row may have; what is longer is cut at the end. Memory grows with it.",
    )
    schedule: Schedule = Field(
        "linear",
        title="Learning-rate schedule",
        description="How the rate falls from its peak to the end of the run.",
    )
    warmup_percent: float = Field(
        5,
        ge=0,
        le=50,
        title="Warm-up (%)",
        description="Share of the steps in which the rate rises from zero.",
    )
    weight_decay: float = Field(
        0.0, ge=0, le=1, title="Weight decay", description="Pulls the trained weights towards zero."
    )
    max_grad_norm: float = Field(
        1.0,
        ge=0,
        le=100,
        title="Gradient clipping",
        description="Longest gradient that one step may use.",
        json_schema_extra={"zero": "off"},
    )
    validation_percent: float = Field(
        10,
        ge=0,
        le=50,
        title="Validation split (%)",
        description="Share of the rows kept aside to see whether the model learns or only memorises.",
        json_schema_extra={"zero": "off"},
    )
    max_validation_rows: int = Field(
        2_000,
        ge=0,
        le=1_000_000,
        title="Most validation rows",
        description="However many the share is, no more rows are kept aside: the rest is trained on. Each evaluation "
        "reads them all.",
        json_schema_extra={"zero": "no limit", "advanced": True},
    )
    stratified: bool = Field(
        True,
        title="Spread labels evenly",
        description="Where rows have labels, those kept aside hold each of them in its share, and no label's only row.",
        json_schema_extra={"advanced": True},
    )
    early_stop: int = Field(
        3,
        ge=0,
        le=100,
        title="Early stop after",
        description="Ends the run when the validation loss has not fallen for this many evaluations.",
        json_schema_extra={"zero": "off"},
    )
    evaluations: int = Field(
        4,
        ge=1,
        le=100,
        title="Evaluations and checkpoints",
        description="How often in the run the validation loss is measured, a checkpoint saved, the prompts answered.",
    )
    recompute: Literal["auto", "on", "off"] = Field(
        "auto",
        title="Recompute activations",
        description="Gradient checkpointing: much less memory, about a third slower. As needed, only so many layers "
        "are computed again as the free memory demands.",
        json_schema_extra={"labels": {"auto": "As needed", "on": "Always", "off": "Never"}},
    )
    memory_limit_gb: float = Field(
        0,
        ge=0,
        le=10_000,
        title="Memory limit (GB)",
        description="The run arranges itself within this much memory, so that something else can use the rest.",
        json_schema_extra={"zero": "all that is free", "advanced": True},
    )
    loop: Literal["auto", "plain"] = Field(
        "auto",
        title="Training loop",
        description="Graft's packed loop is the faster one, where it knows model, method and task; the plain one is "
        "transformers' Trainer, to compare with.",
        json_schema_extra={"labels": {"auto": "The fastest that applies", "plain": "Plain"}, "advanced": True},
    )
    optimizer: Optimizer = Field(
        "adamw",
        title="Optimizer",
        description="AdamW keeps two numbers for each trained parameter. In 8 bits they take a quarter of the memory "
        "and learn nearly the same (slow on a CPU); paged, they move to the computer's memory when the GPU's is full. "
        "Worth it where very much is trained.",
        json_schema_extra={
            "labels": {
                "adamw": "AdamW",
                "adamw-8bit": "AdamW, 8-bit",
                "adamw-paged": "AdamW, paged",
                "adamw-paged-8bit": "AdamW, 8-bit, paged",
            },
            "advanced": True,
        },
    )
    leave_out_bad_rows: bool = Field(
        False,
        title="Leave out bad rows",
        description="Trains on the good rows only; each bad row is listed in the log.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        title="Seed",
        description="Same seed, same data, same settings: the same run; on a GPU but for the last digits.",
    )

    @property
    def narrow_moments(self) -> bool:
        """Whether the optimizer keeps its moments in 8 bits."""
        return self.optimizer.endswith("8bit")

    @property
    def paged_moments(self) -> bool:
        """Whether they may move from the GPU to the host."""
        return "paged" in self.optimizer

    @field_validator("recompute", mode="before")
    @classmethod
    def _of_earlier_versions(cls, value: Any) -> Any:
        return {True: "on", False: "auto"}.get(value, value) if isinstance(value, bool) else value

    def validation_rows(self, rows: int) -> int:
        """How many of `rows` are kept aside: the percentage up to the limit, at least 1 unless it is 0, never the last
        training row."""
        if self.validation_percent == 0 or rows < 2:
            return 0
        share = max(1, round(rows * self.validation_percent / 100))
        return min(share, rows - 1, self.max_validation_rows or rows)

    def steps(self, train_rows: int) -> int:
        """Optimizer steps of the whole run, as transformers' Trainer counts: an epoch's last step may be smaller."""
        steps = max(self.steps_by_epochs(train_rows), self.min_steps)
        return min(steps, self.max_steps) if self.max_steps else steps

    def steps_by_epochs(self, train_rows: int) -> int:
        """What they would be without a least and a most."""
        return math.ceil(self.steps_an_epoch(train_rows) * self.epochs)

    def steps_an_epoch(self, train_rows: int) -> int:
        return math.ceil(math.ceil(train_rows / self.batch_size) / self.gradient_accumulation)


class BaseModelRef(Frozen):
    """Where the child finds the base model: a folder, or a Hub id with the commit it was looked at."""

    name: str
    folder: Path | None = None
    hub_id: str | None = None
    revision: str | None = None

    @property
    def source(self) -> str:
        """What `from_pretrained` takes."""
        return str(self.folder) if self.folder else str(self.hub_id)


class DatasetRef(Frozen):
    """Where the child finds the rows, and which content they are."""

    name: str
    fingerprint: str
    rows: Path  # rows.parquet, see jobs.data.store
    mapping: Mapping
    mends: tuple[MendRef, ...] = ()  # done while the rows are read, in this order


class RunSpec(Frozen):
    """Version 2 brought a limit to the validation rows and DPO's `sft_weight`, version 3 a split by labels. A run of an
    earlier one goes on without: another split would show it rows that it was trained on."""

    version: Literal[3] = 3
    name: str
    base_model: BaseModelRef
    dataset: DatasetRef
    task: str
    task_params: dict[str, Any] = Field(default_factory=dict)
    method: str
    method_params: dict[str, Any] = Field(default_factory=dict)
    training: TrainingParams = TrainingParams()
    prompts: tuple[str, ...] = ()  # answered by base and tuned model at each checkpoint
    predicted_memory: int | None = None  # bytes
    predicted_seconds: tuple[float, float] | None = None  # the least and the most, where earlier runs tell

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("training"), dict):
            return values
        if values.get("version") == 1:
            values = values | {"version": 2, "training": {"max_validation_rows": 0} | values["training"]}
            if values.get("task") == "dpo":
                values["task_params"] = {"sft_weight": 0.0} | values.get("task_params", {})
        if values.get("version") == 2:
            values = values | {"version": 3, "training": {"stratified": False} | values["training"]}
        return values
