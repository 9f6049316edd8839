"""The device, the tokenizer and the base model of a run, as its spec asks for them."""

from __future__ import annotations

import itertools
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from jobs.errors import UserError
from jobs.hardware import (
    Hardware,
    can_compile,
    pages_of_files_left_out,
    peak_resident,
    processor,
    this_machine,
    usable_cores,
)
from jobs.memory.estimate import CUDA_CONTEXT, PROCESS
from jobs.shape import ModelShape, shape_of
from jobs.spec import BaseModelRef

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_LAYER = re.compile(r"\.\d+\.")  # in the name of a parameter that belongs to a numbered layer


@dataclass(frozen=True)
class Device:
    """Where a run computes, and in which precision."""

    name: torch.device
    dtype: torch.dtype  # of the base weights and the matrix products

    @property
    def is_cuda(self) -> bool:
        return self.name.type == "cuda"

    @property
    def scales_losses(self) -> bool:
        """Whether gradients would vanish in `dtype` if losses were not scaled: then a step now and then is skipped."""
        import torch

        return self.dtype == torch.float16

    def autocast(self) -> torch.autocast:
        """Products in `dtype`, the adapter's float32 weights included."""
        import torch

        return torch.autocast(self.name.type, self.dtype, enabled=self.dtype != torch.float32)

    def memory_so_far(self) -> int:
        """Bytes: the most so far, on a GPU of its tensors, on a CPU of this process."""
        if self.is_cuda:
            import torch

            return torch.cuda.max_memory_allocated(self.name)
        return peak_resident()

    def memory_used(self) -> int:
        """Bytes that a GPU's tensors take now."""
        import torch

        return torch.cuda.memory_allocated(self.name)

    def memory_peak(self) -> int:
        """The most bytes so far. On a GPU what torch reserved, which is what must fit."""
        if self.is_cuda:
            import torch

            return torch.cuda.max_memory_reserved(self.name)
        return peak_resident()


def choose_device() -> Device:
    """The first GPU in bf16 (fp16 where it has none); else the CPU, in bf16 only where the processor computes it.

    On a CPU without bf16 instructions bf16 is about 17 times slower than fp32.
    """
    import torch

    torch.set_num_threads(usable_cores())
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Device(torch.device("cuda", 0), torch.bfloat16 if bf16 else torch.float16)
    return Device(torch.device("cpu"), torch.bfloat16 if this_machine().bf16 else torch.float32)


def hardware_of(device: Device) -> Hardware:
    """What the run computes on, as torch sees it: another GPU than nvidia-smi's first one, or a part of one."""
    if not device.is_cuda:
        found, own = processor(), psutil.Process().memory_info().rss  # reckoned with once, in PROCESS
        return found.model_copy(update={"memory_free": min(found.memory_total, found.memory_free + min(own, PROCESS))})
    import torch

    free, total = torch.cuda.mem_get_info(device.name)
    return Hardware(
        device="cuda",
        name=torch.cuda.get_device_name(device.name),
        memory_total=total,
        memory_free=free + CUDA_CONTEXT,  # its own context is taken already, and is reckoned with once
        cores=usable_cores(),
        bf16=device.dtype is torch.bfloat16,
        fp8=torch.cuda.get_device_capability(device.name) >= (9, 0),
        compiles=can_compile(),
    )


def load_tokenizer(base: BaseModelRef) -> PreTrainedTokenizerBase:
    """Raises UserError where the folder is gone."""
    from transformers import AutoTokenizer

    _check_folder(base)
    return AutoTokenizer.from_pretrained(base.source, revision=base.revision, trust_remote_code=False)


def load_model(
    base: BaseModelRef,
    auto_class: str,
    head: dict[str, Any],
    quantization: BitsAndBytesConfig | None,
    device: Device,
    dtype: torch.dtype | None = None,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The base model on its device with the task's head, held as the method wants it, and the names of the parameters
    that the base model's files do not have. Weights from safetensors only.

    `head` is what the model's config must say of the head. What is new is drawn from torch's random state.
    `dtype`: of the weights, where it is not the one that the device computes in.
    Raises UserError where more than a head is new.
    """
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    _check_folder(base)
    # On a CPU without quantization the plain path: device_map would only wrap the modules in hooks.
    placement = {"": str(device.name)} if device.is_cuda or quantization else None
    try:
        with pages_of_files_left_out():
            model, found = getattr(transformers, auto_class).from_pretrained(
                base.source,
                revision=base.revision,
                dtype=dtype or device.dtype,
                use_safetensors=True,
                trust_remote_code=False,
                quantization_config=quantization,
                device_map=placement,
                key_mapping=_renamed(base, auto_class),
                output_loading_info=True,
                **head,
            )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise UserError(
            f"transformers has no {auto_class.removeprefix('AutoModelFor')} for models such as {base.name}. "
            "Choose another task, or another base model."
        ) from error
    new = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if any(_LAYER.search(name) for name in new):
        raise UserError(
            f"The files of {base.name} do not hold the weights of {type(model).__name__}: {len(new):,} parameters are "
            f"missing, among them {next(name for name in new if _LAYER.search(name))}. "
            "Choose another base model or task."
        )
    _keep_weights_as_quantized(model)
    model.config.use_cache = False  # training keeps no key-value cache; generation asks for its own
    return model, tuple(new)


def shape_of_model(model: PreTrainedModel) -> ModelShape:
    """Of a loaded model with nothing beside it, however it is held."""
    import torch

    tensors = {name: {"dtype": "BF16", "shape": list(p.shape)} for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and f"{name}.weight" in tensors:  # quantized ones are packed
            tensors[f"{name}.weight"]["shape"] = [module.out_features, module.in_features]
    return shape_of(model.config.to_dict(), tensors, has_chat_template=False)


def leave_files(model: PreTrainedModel) -> None:
    """Weights that a file holds in the dtype asked for stay parts of the file in a CPU's memory: all of it, until the
    last of them is gone. Copied, each can be given back by itself, as where several are joined into one."""
    with pages_of_files_left_out():
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            tensor.data = tensor.data.clone()


def _keep_weights_as_quantized(model: Any) -> None:
    """On CPUs with bf16 instructions bitsandbytes lays 4-bit weights out anew when a model first answers, and back when
    it trains again, with their scales rounded: evaluating a run would change the model it trains."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _renamed(base: BaseModelRef, auto_class: str) -> dict[str, str] | None:
    """Some question-answering decoders of transformers name their body otherwise than the files do, and would load it,
    without an error, as random numbers."""
    import transformers

    bodies: Any = transformers.MODEL_MAPPING
    answering: Any = transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING
    if auto_class != "AutoModelForQuestionAnswering":
        return None
    config = transformers.AutoConfig.from_pretrained(base.source, revision=base.revision, trust_remote_code=False)
    if type(config) not in answering:
        return None  # from_pretrained will say so
    own = answering[type(config)].base_model_prefix
    files = bodies[type(config)].base_model_prefix
    return None if own == files else {rf"^{files}\.": f"{own}."}


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token does for padding, because masks go by length."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _check_folder(base: BaseModelRef) -> None:
    if base.folder is not None and not (base.folder / "config.json").is_file():
        raise UserError(
            f"The files of {base.name} are no longer at {base.folder}. Put them back, or choose another base model."
        )
