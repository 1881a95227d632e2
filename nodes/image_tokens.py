"""Image tokens in the host's own SDXL, through its model patcher alone: decoupled cross-attention, block by block.

Imported by nodes that run, not by the pack: it needs torch and the host's models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ..ksgen_core.errors import KSGenError
from ..ksgen_core.keysteps.image_tokens import ImageTokens, Place, attention_layers, check_places, rows, until_end
from ..ksgen_core.keysteps.ip_adapter_plus import read
from ..ksgen_core.keysteps.resampler_diffusers import resampler_from_file
from ..ksgen_core.keysteps.skill_transformer import SkillTransformer
from . import host
from .host_models import dtype_for, load, patcher

CALLBACK = "ksgen"
"""Names our callback among those of a MODEL."""


class Adapter:
    """The attention layers of an IP-Adapter file; the host loads and frees them, for it sees them as a model.

    `name` is the file's, for messages.
    """

    def __init__(self, tensors: dict[str, Tensor], name: str) -> None:
        self.name = name
        layers = attention_layers(tensors)
        self.shapes = [tuple(key.shape) for key, _ in layers]
        module = IPAdapterLayers(layers)
        device, offload = memory.get_torch_device(), memory.unet_offload_device()
        # Looked up now: the host replaces the class when it turns dynamic memory on.
        self.patcher = comfy.model_patcher.CoreModelPatcher(module, load_device=device, offload_device=offload)
        state = {
            f"{part}.{number}.weight": weight
            for number, pair in enumerate(layers)
            for part, weight in zip(("to_k", "to_v"), pair, strict=True)
        }
        module.load_state_dict(state, assign=self.patcher.is_dynamic())

    @property
    def module(self) -> Any:
        return self.patcher.model


class IPAdapterLayers(nn.Module):
    """The host's linear layers: they cast themselves to what comes in, and may be loaded one by one."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.to_k, self.to_v = (
            nn.ModuleList(
                comfy.ops.manual_cast.Linear(
                    weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device=weight.device
                )
                for weight in weights
            )
            for weights in zip(*layers, strict=True)
        )


class HostSkillTransformer:
    """What travels on the KSGEN_SKILL_TRANSFORMER wire: the Skill Transformer, or None, and an IP-Adapter-Plus."""

    def __init__(self, skill_file: Path | None, adapter_file: Path) -> None:
        """Raises `KSGenError`, naming the file, if one is something else."""
        host.require_packages("diffusers")
        device, offload = memory.get_torch_device(), memory.unet_offload_device()
        dtype = dtype_for(device)
        self.skill = None if skill_file is None else SkillTransformer.load(skill_file, offload, dtype)
        tensors = read(adapter_file)
        self.resampler = resampler_from_file(tensors, str(adapter_file)).to(offload, dtype)
        self.adapter = Adapter(tensors, adapter_file.name)
        self._patchers = [patcher(part, device) for part in (self.resampler, self.skill) if part is not None]

    def tokens(self, states: Tensor) -> Tensor:
        """An image encoder's penultimate states [B, M, E] -> image tokens [B, N, C].

        Resampler and Skill Transformer are on the host's device thereafter. Raises `KSGenError` if E does not fit.
        """
        width = self.resampler.proj_in.in_features
        if states.shape[-1] != width:
            raise KSGenError(
                f"The IP-Adapter {self.adapter.name} takes states of width {width} from its image encoder, "
                f"this CLIP_VISION gives {states.shape[-1]}. Load the image encoder that the adapter was made with."
            )
        load(self._patchers)
        weight = self.resampler.proj_in.weight
        return self.resampler(states.to(weight.device, weight.dtype))


def text_states(clip: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Each text on its own by the host's SDXL text encoders -> states [T, L, K], mask [T, L] (False: padding).

    As diffusers' `encode_prompt` has it: penultimate states of both encoders side by side, brackets mean nothing, and
    a text that is too long is cut. Raises `KSGenError` for a CLIP of another kind.
    """
    # A clip skip of the user's would give states that the Skill Transformer never saw.
    clip = clip.clone()
    clip.clip_layer(None)
    states, masks = [], []
    show = host.progress()
    for number, text in enumerate(texts, 1):
        tokens = clip.tokenize(text, disable_weights=True)
        if not isinstance(tokens, dict) or set(tokens) != {"l", "g"}:
            got = ", ".join(sorted(tokens)) if isinstance(tokens, dict) else type(tokens).__name__
            raise KSGenError(
                f"This CLIP makes tokens for {got}; wanted are SDXL's two text encoders, l and g. Connect the CLIP of "
                "an SDXL checkpoint, or 'DualCLIPLoader' with the type sdxl."
            )
        tokens = {name: chunks[:1] for name, chunks in tokens.items()}
        states.append(clip.encode_from_tokens(tokens))
        ends = {name: getattr(clip.tokenizer, f"clip_{name}").end_token for name in tokens}
        there = [until_end([one[0] for one in tokens[name][0]], end) for name, end in ends.items()]
        masks.append(torch.tensor(there).any(0))
        show(number, len(texts))
    return torch.cat(states), torch.stack(masks)


def image_states(clip_vision: Any, image: Tensor) -> Tensor:
    """The picture [1, H, W, 3] and the zero image -> penultimate states [2, M, E] of the host's image encoder.

    Zero is meant after normalisation, as IP-Adapter's own `encode_image` has it; no picture gives that.
    """
    states = clip_vision.encode_image(image, crop=True)["penultimate_hidden_states"]
    side = clip_vision.image_size
    zero = torch.zeros(1, 3, side, side, device=clip_vision.load_device)
    # `encode_image` has just loaded it.
    nothing = clip_vision.model(pixel_values=zero, intermediate_output=-2)[1]
    return torch.cat([states, nothing.to(states)])


class Steering:
    """What all blocks of one patched MODEL share: the tokens of one step, how strongly and when they steer."""

    def __init__(
        self, adapter: Adapter, tokens: Tensor, empty: Tensor, weight: float, start_sigma: float, end_sigma: float
    ) -> None:
        self.adapter, self.weight = adapter, weight
        self.pair = torch.stack([tokens, empty])
        self.start_sigma, self.end_sigma = start_sigma, end_sigma
        self._asked: tuple[Any, float] = (None, 0.0)

    def sigma(self, options: dict[str, Any]) -> float | None:
        """How noisy this update is. Read from the device once per update, not once per block."""
        sigmas = options.get("sigmas")
        if sigmas is None:
            return None
        if self._asked[0] is not sigmas:
            self._asked = (sigmas, float(sigmas.flatten()[0]))
        return self._asked[1]

    def attend(self, q: Tensor, layer: int, options: dict[str, Any]) -> Tensor:
        """Queries q [B, Q, heads * width] -> the weighted attention to the image tokens, of the same shape."""
        self.to(q.device)
        pair, which = self.pair.to(q.dtype), options.get("cond_or_uncond", ())
        k, v = (
            rows(part[layer](pair), which, q.shape[0]) for part in (self.adapter.module.to_k, self.adapter.module.to_v)
        )
        return self.weight * _attention(q, k, v, options)

    def to(self, target: Any) -> None:
        self.pair = self.pair.to(target)


class CrossAttention:
    """Takes the place of one block's cross-attention: what stood there before, the image tokens beside it, and what
    packs behind add.
    """

    def __init__(
        self, steering: Steering, layer: int, before: Any, added: Sequence[tuple[Callable[..., Any], dict]] = ()
    ) -> None:
        self.steering, self.layer, self.before = steering, layer, before
        self.added = list(added)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        out = (self.before or _attention)(q, k, v, options)
        sigma = self.steering.sigma(options)
        if _is_on(sigma, self.steering.start_sigma, self.steering.end_sigma):
            out = out + self.steering.attend(q, self.layer, options)
        for attend, given in self.added:
            if _is_on(sigma, given.get("sigma_start", math.inf), given.get("sigma_end", -math.inf)):
                out = (out + attend(out, q, k, v, options, **given)).to(q.dtype)
        return out

    def add(self, attend: Callable[..., Any], **given: Any) -> None:
        """What the packs for IP-Adapter, InstantID and PuLID ask of a patch that they find where theirs should stand:
        to call `attend(out, q, k, v, options, **given)` between the sigmas that are among `given` and to add what it
        returns. See `Attn2Replace` and `set_model_patch_replace` in github.com/cubiq/ComfyUI_IPAdapter_plus.
        """
        self.added.append((attend, given))

    def copy(self) -> CrossAttention:
        return CrossAttention(self.steering, self.layer, self.before, self.added)

    def models(self) -> list[Any]:
        """By this the host knows what to load with the MODEL."""
        before = self.before.models() if hasattr(self.before, "models") else []
        return [self.steering.adapter.patcher, *before]

    def to(self, target: Any) -> CrossAttention:
        """The host brings patches to where it brings the MODEL, and to its dtype."""
        if isinstance(target, torch.device):
            self.steering.to(target)
        if hasattr(self.before, "to"):
            self.before = self.before.to(target)
        return self

    def cleanup(self) -> None:
        if hasattr(self.before, "cleanup"):
            self.before.cleanup()


def _is_on(sigma: float | None, start: float, end: float) -> bool:
    """Is this update between start and end? Where nothing tells how noisy it is, yes."""
    return sigma is None or end <= sigma <= start


def _attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """The very call that the host's block makes without a patch."""
    return optimized_attention(
        q, k, v, options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
    )


def places(model: Any) -> Iterator[Place]:
    """The cross-attentions of the host's UNet, in the order of diffusers' attention processors: down, up, middle."""
    unet = model.model.diffusion_model
    for name in ("input", "output", "middle"):
        blocks = [getattr(unet, "middle_block", None)] if name == "middle" else getattr(unet, f"{name}_blocks", ())
        for number, block in enumerate(blocks):
            for module in block or ():
                for index, transformer in enumerate(getattr(module, "transformer_blocks", ())):
                    if (attention := getattr(transformer, "attn2", None)) is not None:
                        to_k = attention.to_k  # of packed weights only these two say the size
                        yield Place((name, number, index), (to_k.out_features, to_k.in_features))


def patches_of_its_own(_model: Any, clone: Any) -> None:
    """Who adds to a patch writes into it: a clone of a MODEL gets patches of its own, so the MODEL stays as it was."""
    replaced = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    replaced |= {name: patch.copy() for name, patch in replaced.items() if isinstance(patch, CrossAttention)}


def apply(model: Any, tokens: ImageTokens, step: int, weight: float, start: float, end: float) -> Any:
    """The MODEL, patched so that the tokens of `step`, counted from 0, steer it from `start` to `end` (0..1 of the
    sampling). With no weight it is the bare one. Raises `KSGenError` if the adapter does not fit it.
    """
    found = list(places(model))
    check_places(tokens.adapter.shapes, found, type(model.model).__name__, tokens.adapter.name)
    patched = model.clone()
    if weight == 0:
        return patched
    sampling = model.get_model_object("model_sampling")
    start_sigma, end_sigma = (sampling.percent_to_sigma(percent) for percent in (start, end))
    steering = Steering(tokens.adapter, tokens.tokens[step], tokens.empty, weight, start_sigma, end_sigma)
    replaced = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for layer, place in enumerate(found):
        # A patch may be for one transformer block or for all of a UNet block; the former goes first in the host.
        before = replaced.get(place.name, replaced.get(place.name[:2]))
        patched.set_model_attn2_replace(CrossAttention(steering, layer, before), *place.name)
    if not patched.get_callbacks(CallbacksMP.ON_CLONE, CALLBACK):
        patched.add_callback_with_key(CallbacksMP.ON_CLONE, CALLBACK, patches_of_its_own)
    return patched


def as_conditioning(tokens: ImageTokens, step: int, before: Any = None) -> list[list[Any]]:
    """The tokens of `step` as the host's CONDITIONING, behind the tokens of `before` if that is given."""
    own = tokens.tokens[step][None]
    if before is None:
        # The width of SDXL's pooled text; ConditioningConcat keeps that of the conditioning it adds to.
        return [[own, {"pooled_output": torch.zeros(1, 1280)}]]
    for text, _ in before:
        if text.shape[-1] != own.shape[-1]:
            raise KSGenError(
                f"Image tokens of width {own.shape[-1]} cannot stand behind a CONDITIONING of width {text.shape[-1]}. "
                "Connect one of the model that the IP-Adapter was made for."
            )
    return [
        [torch.cat([text, own.to(text).expand(len(text), -1, -1)], dim=1), dict(options)] for text, options in before
    ]
