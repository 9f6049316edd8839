"""What a method declares: its settings, its cost, where it applies, and how it attaches to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.shape import LinearModule, ModelShape

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

    from jobs.methods.targets import TargetRow

Quantization = Literal["none", "fp8", "int8", "nf4"]  # how the frozen base is held while training
_HELD: dict[str, Quantization] = {"full": "none", "fp8": "fp8", "8-bit": "int8", "4-bit": "nf4"}
# New heads are trained, so they are never quantized; nor is the output head.
_NOT_QUANTIZED = ["lm_head", "classifier", "score", "qa_outputs"]


@dataclass(frozen=True)
class Context:
    """What `attach` may need to know of the run."""

    task_type: str = "CAUSAL_LM"  # PEFT's word for the kind of model
    total_steps: int = 1
    source: str = ""  # what `from_pretrained` takes for the base model: a folder or a Hub id
    revision: str | None = None  # the commit of the Hub id that the run is pinned to
    computes_in: str = "float32"  # the precision of the matrix products: "bfloat16"
    narrow: bool = False  # what is not quantized stays in the precision it was loaded in (the packed loop)


class Method:
    """One fine-tuning method. The form, the validation, the estimate and the docs all come from this class."""

    name: ClassVar[str] = ""  # stored in specs: never change it
    label: ClassVar[str] = ""
    help: ClassVar[str] = ""  # one line, for someone who has not read the paper
    group: ClassVar[str] = "Low-rank"  # the heading it stands under in the form
    order: ClassVar[int] = 100  # place in the form

    merges: ClassVar[bool] = True  # into the base's own weights: then it costs nothing when answering
    slows_answers: ClassVar[bool] = True  # while it is not merged
    trains_base: ClassVar[bool] = False  # every weight of it: then it is held in 32 bits, and saved whole
    keeps_base: ClassVar[bool] = True  # beneath what is trained; else it must answer before anything is
    packs: ClassVar[bool] = False  # trains in the packed loop (jobs.loops), which knows LoRA's matrices
    recomputes: ClassVar[bool] = True  # trains with recomputed activations, too
    task_types: ClassVar[tuple[str, ...]] = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")

    # Settings by the size of a preset: small, medium, large (jobs.presets). Others keep their default.
    sizes: ClassVar[dict[str, tuple[float, float, float]]] = {}

    class Params(Frozen):
        """The settings of this method: pydantic fields with title, description and limits."""

    def trainable(self, params: Any, shape: ModelShape) -> int:
        """Trainable parameters, exactly as `attach` will make them; a task's head comes on top."""
        raise NotImplementedError

    def check(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        """Problems that forbid training, in the user's words; empty where there are none."""
        return []

    def recommended(self, hardware: Hardware) -> bool:
        """Whether it stands in sight on the form, where the others are behind "More methods"."""
        return False

    def notes(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        """What the person should know before Start although it forbids nothing."""
        return []

    def learning_rate(self, shape: ModelShape) -> float:
        """A rate that visibly learns on a model of this size."""
        raise NotImplementedError

    def target_table(self, params: Any, shape: ModelShape) -> list[TargetRow]:
        """The model's layers it goes to, by their real names; empty for a method that goes to none."""
        return []

    def modules(self, params: Any, linears: Sequence[LinearModule]) -> list[LinearModule]:
        """The linear layers it goes to, of all that the model has; none for a method that goes to none."""
        return []

    def held_memory(self, params: Any, shape: ModelShape, recompute: bool, width: int) -> int:
        """Bytes that training holds beyond parameters, gradients and moments: frozen projections, whole-size
        differences kept for the backward pass. `width`: bytes of what is computed."""
        return 0

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        """Bytes a token that all layers together keep for the backward pass because of it, beside the base's own."""
        return 0

    def layers_reached(self, params: Any, shape: ModelShape) -> int:
        """How many layers, from the last, the backward pass goes through."""
        return shape.layers + shape.decoder_layers  # as if the text written were as long as the one read

    def positions(self, params: Any) -> int:
        """How many positions it puts before every input."""
        return 0

    def quantization(self, params: Any) -> Quantization:
        """How the frozen base is held while training."""
        return _HELD[getattr(params, "base_weights", "full")]

    def quantization_config(self, params: Any, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
        """How transformers should load the base; None for full precision. Imports torch."""
        held = self.quantization(params)
        if held in ("none", "fp8"):  # the packed loop rounds it by itself, once it is loaded
            return None
        from transformers import BitsAndBytesConfig

        if held == "int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NOT_QUANTIZED)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=getattr(params, "double_quantization", True),
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=_NOT_QUANTIZED,  # for 4 bits, too
        )

    def prepared(self, model: PreTrainedModel, params: Any, narrow: bool = False) -> PreTrainedModel:
        """The loaded base, ready to have something put beside it: where it is quantized, the rest of it in 32 bits,
        unless it is to stay `narrow`."""
        if self.quantization(params) in ("none", "fp8"):
            return model
        if narrow:
            model.requires_grad_(False)
            return model
        from peft import prepare_model_for_kbit_training

        # Recomputation is the trainer's choice, not this call's.
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)

    def attach(self, model: PreTrainedModel, params: Any, context: Context) -> Any:
        """The model with this method's parameters trainable and the rest frozen. Imports torch and PEFT.

        What comes back has PeftModel's surface as far as Graft uses it: forward, generate, `get_base_model()`,
        `get_nb_trainable_parameters()`, and where the method `keeps_base` `disable_adapter()`. Until something is
        trained it answers as the base.
        """
        raise NotImplementedError

    def save(self, model: Any, folder: Path) -> None:
        """The trained part as a folder that the playground puts on the bare base model."""
        # "auto", the default, asks the Hub whether the embedding was resized. Graft resizes none.
        model.save_pretrained(str(folder), save_embedding_layers=False)

    def state(self, model: Any) -> dict[str, torch.Tensor]:
        """What a resumed run goes on from: with it, `attach` and `restore` give the model as it was.

        Not what `save` writes: that is made for answering, and some methods fold there what they trained.
        """
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def restore(self, model: Any, state: dict[str, torch.Tensor]) -> None:
        """Put `state` back into a model that `attach` has just made."""
        import torch

        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in state.items():
                parameters[name].copy_(value)

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
