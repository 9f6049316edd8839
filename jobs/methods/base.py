"""What a method declares: its settings, its cost, where it applies, and how it attaches to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.shape import ModelShape

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

Quantization = Literal["none", "nf4"]


class Method:
    """One fine-tuning method. The form, the validation, the estimate and the docs all come from this class."""

    name: ClassVar[str] = ""  # stored in specs: never change it
    label: ClassVar[str] = ""
    help: ClassVar[str] = ""  # one line, for someone who has not read the paper
    order: ClassVar[int] = 100  # place in the form
    quantization: ClassVar[Quantization] = "none"  # how the frozen base is held while training

    class Params(Frozen):
        """The settings of this method: pydantic fields with title, description and limits."""

    def trainable(self, params: Any, shape: ModelShape) -> int:
        """Trainable parameters, exactly as `attach` will make them."""
        raise NotImplementedError

    def check(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        """Problems that forbid training, in the user's words; empty where there are none."""
        return []

    def notes(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        """What the person should know before Start although it forbids nothing."""
        return []

    def learning_rate(self, shape: ModelShape) -> float:
        """A rate that visibly learns on a model of this size."""
        raise NotImplementedError

    def quantization_config(self, params: Any, compute_dtype: Any) -> BitsAndBytesConfig | None:
        """How transformers should load the base; None for full precision. Imports torch."""
        return None

    def attach(self, model: PreTrainedModel, params: Any, task_type: str) -> Any:
        """The model with this method's parameters trainable and the rest frozen. Imports torch and PEFT."""
        raise NotImplementedError
