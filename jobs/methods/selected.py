"""Training the model's own weights: the biases alone (BitFit, Ben Zaken et al. 2021), or every one of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from jobs.hardware import Hardware
from jobs.memory.estimate import compute_bytes
from jobs.memory.kept import FP32
from jobs.methods.base import Context, Method
from jobs.methods.layered import SHARED
from jobs.shape import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A bias in one of the numbered blocks, as the paper's are: those of a head depend on the task.
_BIAS = re.compile(r"(^|\.)\d+\.(.*\.)?bias$")
_TRAINABLE_DTYPES = ("F32", "F16", "BF16")


class BitFit(Method):
    name = "bitfit"
    label = "BitFit (biases)"
    help = "Trains only the biases in the model's blocks, where it has any: tiny, and costs nothing when answering."
    group = "The model's own weights"
    order = 300
    slows_answers = False

    def trainable(self, params: Any, shape: ModelShape) -> int:
        return sum(vector.size for vector in shape.vectors if _BIAS.search(vector.name))

    def check(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        if self.trainable(params, shape):
            return []
        return [
            f"You chose BitFit, but {shape.architecture} has no biases in its blocks: there is nothing to train. LN "
            "tuning is nearest to it (it trains the norms' weights, as small and as free); LoRA learns more."
        ]

    def learning_rate(self, shape: ModelShape) -> float:
        return 2e-3 if shape.parameters < 1_500_000_000 else 5e-4

    def attach(self, model: PreTrainedModel, params: Any, context: Context) -> Any:
        from jobs.errors import UserError
        from jobs.modules.config import Kind
        from jobs.modules.tuned import TunedModel

        biases = {name for name, p in model.named_parameters() if p.ndim == 1 and _BIAS.search(name)}
        if not biases:
            raise UserError(f"{type(model).__name__} has no biases in its blocks: BitFit has nothing to train.")
        return TunedModel(model, Kind.BITFIT, context.task_type, trains=biases.__contains__)


class FullFineTuning(Method):
    name = "full"
    label = "Full fine-tuning"
    help = (
        "Trains every weight of the model. Learns the most, costs the most: what the other methods are compared with."
    )
    group = "The model's own weights"
    order = 310
    slows_answers = False
    trains_base = True
    keeps_base = False

    def recommended(self, hardware: Hardware) -> bool:
        return True

    def trainable(self, params: Any, shape: ModelShape) -> int:
        return shape.parameters

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        """What each matrix is multiplied with, narrowed for each anew, and what each norm's weight scales; with weights
        in 32 bits so is what flows between the layers."""
        inputs = sum(module.in_features for module in shape.linears)
        return inputs * width * (SHARED if width == FP32 else 1) + 2 * shape.layers * shape.hidden_size * FP32

    def check(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        if shape.dtype in _TRAINABLE_DTYPES:
            return []
        return [
            f"You chose full fine-tuning, but this model's files hold its weights as {shape.dtype}, which cannot be "
            "trained themselves. Choose LoRA, or the model's unquantized files."
        ]

    def notes(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        # 32 bits each: the weight, its gradient, Adam's two moments, unless those are set to 8. A checkpoint keeps all
        # but the gradient; the best and the newest are kept while a third is written.
        weight = shape.parameters * 4
        saved = shape.parameters * (4 if shape.dtype == "F32" or compute_bytes(hardware) == 4 else 2)
        return [
            f"Full fine-tuning holds every weight, its gradient and Adam's two moments in 32 bits: "
            f"{_gigabytes(4 * weight)} before anything is computed, a third less with an Optimizer in 8 bits. While it "
            f"runs its checkpoints take up to {_gigabytes(9 * weight)} of disk, and what it saves is a whole model of "
            f"{_gigabytes(saved)}. LoRA usually comes close to it with a hundredth of that."
        ]

    def learning_rate(self, shape: ModelShape) -> float:
        # 1e-4 at 135M and 1.4e-5 at 7B, falling with the root of the size.
        return min(1e-3, max(1.1e-5, 1e-4 * (135e6 / shape.parameters) ** 0.5))

    def attach(self, model: PreTrainedModel, params: Any, context: Context) -> Any:
        from jobs.modules.config import Kind
        from jobs.modules.tuned import TunedModel

        narrow = context.computes_in != "float32"
        return TunedModel(model, Kind.FULL, context.task_type, trains=lambda name: True, saved_narrow=narrow)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
