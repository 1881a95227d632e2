"""A LoRA on a frozen transformer: put there by peft, trained in float32, written as diffusers and ComfyUI read it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import save_weights
from ..clips.wan_native import TRANSFORMER_NAMES, wan_name
from ..errors import KSGenError
from ..residence_diffusers import FP8

KIND = "ksgen.clip_lora/1"
ADAPTER = "ksgen"
# Wan 2.1's layers for the tokens of the picture (diffusers/loaders/lora_conversion_utils.py has them the other way).
NATIVE_NAMES = (*TRANSFORMER_NAMES, (r"\.add_(k|v)_proj\.", r".\1_img."))


def linear_layers(transformer: nn.Module, targets: Sequence[str], *, all_of_them: bool) -> list[str]:
    """The linear layers that these names mean: whole names, or what follows a full stop in them.

    Raises `KSGenError` if none does, or, with `all_of_them`, if one of them means none.
    """
    linear = [name for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)]
    by_target = {t: [name for name in linear if name == t or name.endswith(f".{t}")] for t in targets}
    found = sorted({name for names in by_target.values() for name in names})
    lost = [target for target, names in by_target.items() if not names]
    if not found or lost and all_of_them:
        known = sorted({name.rpartition(".")[2] if not name[-1].isdigit() else name for name in linear})
        short = sorted({name.split(".", 2)[-1] if name[:1] == "b" else name for name in linear} | set(known))
        raise KSGenError(
            f"This transformer has no linear layer {', '.join(lost)!r} for --target. It has, among others: "
            f"{', '.join(short[:24])}."
        )
    return found


def add_lora(
    transformer: Any, rank: int, alpha: float, layers: Sequence[str], seed: int = 0, *, fp8: bool = False
) -> nn.ParameterList:
    """Freeze the transformer and put an untrained LoRA on these layers; gives the LoRA's weights, float32.

    Its second matrices are zero, so the transformer computes what it did, bit for bit; with `fp8` its frozen weights
    are kept in 8 bits first, and computed with in their own precision. The random state stays as it was. Raises
    `KSGenError` without peft.
    """
    if importlib.util.find_spec("peft") is None:
        raise KSGenError(
            "LoRAs are trained with the Python package peft, which is not installed. Install it with the Python that "
            "runs this: python -m pip install peft"
        )
    from peft import LoraConfig

    transformer.requires_grad_(False).eval()
    if fp8:
        # Before the LoRA is there: diffusers would keep that in 8 bits too.
        transformer.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=transformer.dtype)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(layers))  # type: ignore[arg-type]
        transformer.add_adapter(config, ADAPTER)
        weights = {name: weight for name, weight in transformer.named_parameters() if weight.requires_grad}
        for name, weight in weights.items():
            weight.data = weight.data.float()
            if ".lora_A." in name:
                # As peft does it, which then rounds to the precision of the layer below.
                fresh = torch.empty(weight.shape)
                nn.init.kaiming_uniform_(fresh, a=math.sqrt(5))
                weight.data.copy_(fresh)
    return nn.ParameterList(weights.values())


def save_lora(path: Path, transformer: Any, dtype: torch.dtype, config: Mapping[str, Any]) -> None:
    """Write the LoRA in diffusers' own format, with `config`, which says what it is.

    Raises `KSGenError` if the file cannot be written.
    """
    tensors = {f"transformer.{name}": tensor for name, tensor in _state(transformer, dtype).items()}
    save_weights(path, tensors, KIND, config)


def save_native(path: Path, transformer: Any, dtype: torch.dtype, config: Mapping[str, Any]) -> None:
    """Write the LoRA of a Wan transformer under Wan's own names, which ComfyUI's LoRA loaders read.

    Raises `KSGenError` if the file cannot be written.
    """
    tensors = {}
    for name, tensor in _state(transformer, dtype).items():
        layer, _, kind = name.removesuffix(".weight").rpartition(".")
        native = "diffusion_model." + wan_name(f"{layer}.weight", NATIVE_NAMES).removesuffix(".weight")
        tensors[f"{native}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"] = tensor
        tensors[f"{native}.alpha"] = torch.tensor(float(transformer.peft_config[ADAPTER].r))
    save_weights(path, tensors, KIND, config)


def _state(transformer: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The LoRA's weights by name, alpha / rank in the second of each two.

    So alpha is the rank, which is what loaders take it for that are told nothing of it: peft's own words on it are not
    read alike by all versions of diffusers.
    """
    from peft import get_peft_model_state_dict

    peft = transformer.peft_config[ADAPTER]
    state = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    scale = peft.lora_alpha / peft.r
    return {name: (tensor.float() * (scale if ".lora_B." in name else 1)).to(dtype) for name, tensor in state.items()}
