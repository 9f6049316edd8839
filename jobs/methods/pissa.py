"""PiSSA: LoRA that starts from the strongest directions of the weights themselves (Meng et al. 2024).

The base loses what the adapter starts with, which no other adapter could live with. So what is saved is plain LoRA on
the untouched base, of twice the rank: what was learnt, less the start. It loads, merges and shares a batch like LoRA.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jobs.methods.base import Context
from jobs.methods.lora import LoRA, RankParams, lora_rate
from jobs.methods.targets import TargetParams
from jobs.shape import ModelShape

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

_ADAPTER = "default"
_START = "start:"  # before the names of the tensors that it began with


class PiSSA(LoRA):
    name = "pissa"
    label = "PiSSA"
    help = (
        "LoRA that starts from the weights' strongest directions: faster at first, saved as a LoRA of twice the rank."
    )
    order = 60
    keeps_base = False  # what the base lacks is what the adapter began with

    class Params(TargetParams, RankParams):
        pass

    def lora_extras(self, params: Any) -> dict[str, Any]:
        return {"init_lora_weights": "pissa_niter_16"}

    def held_memory(self, params: Any, shape: ModelShape, recompute: bool, width: int) -> int:
        return 4 * self.trainable(params, shape)  # the start

    def learning_rate(self, shape: ModelShape) -> float:
        return lora_rate(shape) / 2  # it moves the directions that matter most

    def attach(self, model: PreTrainedModel, params: Any, context: Context) -> Any:
        tuned = super().attach(model, params, context)
        tuned.pissa_start = {
            name: parameter.detach().clone()
            for name, parameter in tuned.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }
        return tuned

    def save(self, model: Any, folder: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        super().save(model, folder)
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        for name, start in model.pissa_start.items():
            key = name.replace(f".{_ADAPTER}.", ".")
            both = (tensors[key], start.cpu()) if ".lora_A." in name else (tensors[key], -start.cpu())
            tensors[key] = torch.cat(both, dim=0 if ".lora_A." in name else 1).contiguous()
        save_file(tensors, file, metadata={"format": "pt"})
        config_file = folder / "adapter_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")

    def state(self, model: Any) -> dict[str, torch.Tensor]:
        return super().state(model) | {_START + name: tensor for name, tensor in model.pissa_start.items()}

    def restore(self, model: Any, state: dict[str, torch.Tensor]) -> None:
        """The base must lack the same start as it did: singular vectors may come out another way elsewhere."""
        import torch
        from peft.tuners.lora import Linear as LoraLinear

        start = {name.removeprefix(_START): value for name, value in state.items() if name.startswith(_START)}
        super().restore(model, {name: value for name, value in state.items() if not name.startswith(_START)})
        with torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, LoraLinear):
                    ends = [f"{name}.{kind}.{_ADAPTER}.weight" for kind in ("lora_A", "lora_B")]
                    made = model.pissa_start[ends[1]] @ model.pissa_start[ends[0]]
                    had = start[ends[1]].to(made) @ start[ends[0]].to(made)
                    weight = module.get_base_layer().weight
                    moved = module.scaling[_ADAPTER] * (made - had)
                    weight += (moved.T if module.fan_in_fan_out else moved).to(weight.dtype)
            for name, tensor in model.pissa_start.items():
                tensor.copy_(start[name])
