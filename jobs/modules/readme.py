"""README.md of an adapter that plain PEFT cannot load: what it is, and the few lines that use it without Graft."""

from __future__ import annotations

from jobs.modules.config import MODEL, TENSORS, Kind, TunedConfig
from jobs.tasks.base import HEADS

_ABOUT = {
    Kind.BOTTLENECK: "Bottleneck adapters: small two-layer networks behind the sublayers of the base model.",
    Kind.BITFIT: "The base model's biases, trained (BitFit). Everything else is as it was.",
    Kind.FULL: "The base model with all of its weights trained, in the layout of `transformers`.",
}
_WHOLE = """\
from pathlib import Path

from transformers import AutoTokenizer, {auto}

folder = Path("{model}")  # beside this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder)
"""
_TENSORS = """\
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, {auto}

folder = Path(".")  # where this file is
base = "{base}"
tokenizer = AutoTokenizer.from_pretrained(base)
model = {auto}.from_pretrained(base{labels})
tensors = load_file(folder / "{tensors}")
own = {{name: tensor for name, tensor in tensors.items() if ".adapter." not in name}}
assert not model.load_state_dict(own, strict=False).unexpected_keys
"""
_HOOKS = """\

config = json.loads((folder / "adapter_config.json").read_text())["bottleneck"]
nonlinearity = getattr(torch.nn.functional, config["nonlinearity"])
linear = torch.nn.functional.linear


def adapter(place):
    part = {{name: tensors[f"{{place}}.adapter.{{name}}"].to(model.dtype)
            for name in ("down.weight", "down.bias", "up.weight", "up.bias")}}

    def run(module, inputs, output):
        narrow = nonlinearity(linear(output, part["down.weight"], part["down.bias"]))
        return output + linear(narrow, part["up.weight"], part["up.bias"])

    return run


for place in config["places"]:
    model.get_submodule(place).register_forward_hook(adapter(place))
"""


def text(config: TunedConfig) -> str:
    """The README. It names the base as `config` does: who ships the folder can put another name in its place."""
    auto = next(auto for auto, peft in HEADS.values() if peft == config.task_type)
    code = _WHOLE if config.peft_type is Kind.FULL else _TENSORS
    if config.peft_type is Kind.BOTTLENECK:
        code += _HOOKS
    lines = code.format(
        auto=auto,
        model=MODEL,
        base=config.base_model_name_or_path,
        tensors=TENSORS,
        labels=f", num_labels={config.labels}" if config.labels else "",
    )
    return (
        f"# {config.base_model_name_or_path}, fine-tuned with Graft\n\n{_ABOUT[config.peft_type]}\n\n"
        f"Needs `torch`, `transformers` and `safetensors`, not Graft and not PEFT:\n\n```python\n{lines}```\n"
    )
