"""LoRAs of random weights for any tiny model, as peft and diffusers write them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


def write_lora(model, folder: Path, part: str | None = None, seed: int = 1) -> Path:
    """A LoRA on every linear layer of the attention of the model's backbone `part`, in a file in `folder`."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    part = part or model.denoisers[0]
    backbone = model.parts()[part]
    layers = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear) and "attn" in name]
    config = LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules=layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone.add_adapter(config)
    weights = get_peft_model_state_dict(backbone)
    file = folder / f"{part}.safetensors"
    if hasattr(model.pipe, "save_lora_weights"):
        word = "unet" if part == "unet" else "transformer"
        model.pipe.save_lora_weights(folder, weight_name=file.name, **{f"{word}_lora_layers": weights})
    else:
        save_file({f"transformer.{name}": tensor.contiguous() for name, tensor in weights.items()}, file)
    return file
