"""The IP-Adapter-Plus file format, to and from diffusers' modules.

Keys (github.com/tencent-ailab/IP-Adapter): `image_proj.*` is the Perceiver resampler of 4 layers with heads of 64,
`ip_adapter.<1, 3, 5, ...>.to_k_ip.weight` and `.to_v_ip.weight` are the decoupled cross-attention layers in the order
of `unet.attn_processors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import read_tensors, write_atomically
from ..errors import KSGenError

DEPTH, HEAD_WIDTH = 4, 64
"""What no file says, and diffusers takes for granted as IP-Adapter's own code does (ip_adapter.py, IPAdapterPlusXL)."""

# diffusers' resampler -> the file. The order matters: the first that fits is taken.
NAMES = (
    (".ln0.", ".0.norm1."),
    (".ln1.", ".0.norm2."),
    (".attn.to_q.", ".0.to_q."),
    (".attn.to_out.0.", ".0.to_out."),
    (".ff.0.", ".1.0."),
    (".ff.1.net.0.proj.", ".1.1."),
    (".ff.1.net.2.", ".1.3."),
)


def install(unet: Any, adapter: dict[str, Tensor]) -> Any:
    """Give the UNet the adapter's attention layers and return the resampler, which then stands on its own.

    The UNet takes image tokens as `added_cond_kwargs={"image_embeds": [tokens]}` thereafter. Raises `KeyError`,
    `ValueError` or `RuntimeError` if the adapter does not fit.
    """
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in adapter.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    layers = [name for name in unet.attn_processors if not name.endswith("attn1.processor")]
    given = sum(name.endswith(".to_k_ip.weight") for name in parts["ip_adapter"])
    if given != len(layers):
        raise ValueError(f"it has {given} cross-attention layers, the UNet has {len(layers)}")
    # What `pipe.load_ip_adapter` calls; that one would also make an image processor, which nothing here needs.
    unet._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
    resampler = unet.encoder_hid_proj.image_projection_layers[0]
    # Predicted tokens are resampled already, so the UNet must take tokens as they are.
    unet.encoder_hid_proj = nn.Identity()
    return resampler


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an IP-Adapter-Plus file. Raises `KSGenError`, naming the file, if it is something else."""
    if Path(path).suffix in (".bin", ".pt", ".pth", ".ckpt") and Path(path).is_file():
        raise KSGenError(
            f"{path} is a pickle, which can run code when it is read. Get the adapter as .safetensors; Kolors' own one "
            "is there as such in the revision refs/pr/4 of Kwai-Kolors/Kolors-IP-Adapter-Plus."
        )
    tensors = read_tensors(path)
    if "image_proj.latents" not in tensors or not all(k.startswith(("image_proj.", "ip_adapter.")) for k in tensors):
        raise KSGenError(f"{path} is not an IP-Adapter-Plus file: it has no image_proj.latents or holds other weights.")
    depth = len({key.split(".")[2] for key in tensors if key.startswith("image_proj.layers.")})
    inner = {t.shape[0] for key, t in tensors.items() if key.startswith("image_proj.") and key.endswith("to_q.weight")}
    if depth != DEPTH or any(width % HEAD_WIDTH for width in inner):
        raise KSGenError(
            f"The resampler in {path} has {depth} layers of inner width {', '.join(map(str, sorted(inner)))}. "
            f"IP-Adapter-Plus has {DEPTH} layers with heads of {HEAD_WIDTH}; get an adapter of that shape."
        )
    return tensors


def write(path: str | Path, unet: Any, resampler: nn.Module, dtype: torch.dtype) -> None:
    """Write the adapter that `install` made, in `dtype`."""
    from safetensors.torch import save_file

    tensors = {f"image_proj.{key}": t for key, t in resampler_to_file(resampler.state_dict()).items()}
    layers = [p for p in unet.attn_processors.values() if hasattr(p, "to_k_ip")]
    for number, layer in enumerate(layers):
        tensors[f"ip_adapter.{2 * number + 1}.to_k_ip.weight"] = layer.to_k_ip[0].weight
        tensors[f"ip_adapter.{2 * number + 1}.to_v_ip.weight"] = layer.to_v_ip[0].weight
    tensors = {key: t.detach().to("cpu", dtype).contiguous() for key, t in tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))


def resampler_to_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of diffusers' `IPAdapterPlusImageProjection` -> the keys after `image_proj.` in the file."""
    tensors = {}
    for key, tensor in state.items():
        if ".attn.to_v." in key:
            continue
        if ".attn.to_k." in key:
            value = state[key.replace("to_k", "to_v")]
            tensors[key.replace(".attn.to_k.", ".0.to_kv.")] = torch.cat([tensor, value])
            continue
        for ours, theirs in NAMES:
            if ours in key:
                key = key.replace(ours, theirs)
                break
        tensors[key] = tensor
    return tensors
