"""What a method declares: its settings, its cost, where it applies, and how it attaches to a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.shape import ModelShape

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

Quantization = Literal["none", "int8", "nf4"]  # how the frozen base is held while training


@dataclass(frozen=True)
class Context:
    """What `attach` may need to know of the run."""

    task_type: str = "CAUSAL_LM"  # PEFT's word for the kind of model
    total_steps: int = 1
    source: str = ""  # what `from_pretrained` takes for the base model: a folder or a Hub id


class Method:
    """One fine-tuning method. The form, the validation, the estimate and the docs all come from this class."""

    name: ClassVar[str] = ""  # stored in specs: never change it
    label: ClassVar[str] = ""
    help: ClassVar[str] = ""  # one line, for someone who has not read the paper
    group: ClassVar[str] = "Low-rank"  # the heading it stands under in the form
    order: ClassVar[int] = 100  # place in the form

    merges: ClassVar[bool] = True  # into the base's own weights: then it costs nothing when answering
    slows_answers: ClassVar[bool] = True  # while it is not merged
    task_types: ClassVar[tuple[str, ...]] = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")

    class Params(Frozen):
        """The settings of this method: pydantic fields with title, description and limits."""

    def trainable(self, params: Any, shape: ModelShape) -> int:
        """Trainable parameters, exactly as `attach` will make them; a task's head comes on top."""
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

    def quantization(self, params: Any) -> Quantization:
        """How the frozen base is held while training."""
        return "none"

    def quantization_config(self, params: Any, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
        """How transformers should load the base; None for full precision. Imports torch."""
        held = self.quantization(params)
        if held == "none":
            return None
        from transformers import BitsAndBytesConfig

        if held == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=getattr(params, "double_quantization", True),
            bnb_4bit_compute_dtype=compute_dtype,
        )

    def attach(self, model: PreTrainedModel, params: Any, context: Context) -> Any:
        """The model with this method's parameters trainable and the rest frozen. Imports torch and PEFT.

        What comes back has PeftModel's surface as far as Graft uses it: forward, generate, `disable_adapter()`,
        `get_base_model()`, `get_nb_trainable_parameters()`, `save_pretrained(folder)`.
        """
        raise NotImplementedError

    def parameter_groups(
        self, model: Any, params: Any, learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]] | None:
        """The optimizer's groups where they are not the usual ones (jobs.training.schedule)."""
        return None

    def regularisation(self, model: Any, params: Any) -> torch.Tensor | None:
        """What the method adds to the loss of a step."""
        return None

    def before_zero_grad(self, model: Any, params: Any, step: int) -> None:
        """Called after each optimizer step, counted from 1, while its gradients are still there."""
