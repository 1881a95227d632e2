"""The Perceiver resampler of an IP-Adapter-Plus file, without a UNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import KSGenError
from .ip_adapter_plus import HEAD_WIDTH, NAMES


def resampler_from_file(adapter: dict[str, Tensor], name: str = "This file") -> Any:
    """diffusers' `IPAdapterPlusImageProjection`, sized by the weights `image_proj.*` of a file that `read` gave.

    It takes an image encoder's penultimate states [B, M, E] and gives image tokens [B, N, C]. Raises `KSGenError`,
    beginning with `name`, if the weights are of another kind of image projection.
    """
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    state = resampler_from_weights(
        {key.removeprefix("image_proj."): tensor for key, tensor in adapter.items() if key.startswith("image_proj.")}
    )
    try:
        # diffusers would draw random numbers for weights that are replaced at once.
        with torch.device("meta"):
            resampler = IPAdapterPlusImageProjection(
                embed_dims=state["proj_in.weight"].shape[1],
                output_dims=state["proj_out.weight"].shape[0],
                hidden_dims=state["latents"].shape[2],
                depth=len({key.split(".")[1] for key in state if key.startswith("layers.")}),
                heads=state["layers.0.attn.to_q.weight"].shape[0] // HEAD_WIDTH,
                num_queries=state["latents"].shape[1],
            )
        resampler.load_state_dict(state, assign=True)
    except (KeyError, IndexError, RuntimeError) as error:
        raise KSGenError(f"{name} holds no IP-Adapter-Plus resampler ({error}). Choose a 'plus' adapter.") from error
    return resampler.eval().requires_grad_(False)


def resampler_from_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys after `image_proj.` in the file -> the state of diffusers' module: `resampler_to_file` the other way."""
    state = {}
    for key, tensor in weights.items():
        if not key.startswith("layers."):
            state[key] = tensor
            continue
        _, layer, inner = key.split(".", 2)
        if inner == "0.to_kv.weight":
            for ours, half in zip(("to_k", "to_v"), tensor.chunk(2), strict=True):
                state[f"layers.{layer}.attn.{ours}.weight"] = half
            continue
        for ours, theirs in NAMES:
            if inner.startswith(theirs[1:]):
                inner = ours[1:] + inner.removeprefix(theirs[1:])
                break
        state[f"layers.{layer}.{inner}"] = tensor
    return state
