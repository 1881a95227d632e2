"""Measures a model of `full_size` in this process: draws its weights, settles it by the memory options, uses it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from core_child import peak_mb
from full_size import MODELS, Model, empty
from torch import nn

from ksgen_core.checkpoints_diffusers import quietly
from ksgen_core.clips.clip_diffusers import ClipModel
from ksgen_core.clips.wan_diffusers import WanClipModel
from ksgen_core.clips.ways import Shot
from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.draw import Condition, complete, draw_batch
from ksgen_core.keysteps.ip_adapter_plus import DEPTH, HEAD_WIDTH, resampler_to_file
from ksgen_core.keysteps.policies import DrawSettings
from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel
from ksgen_core.memory import MemoryOptions
from ksgen_core.residence_diffusers import settle
from ksgen_core.sampling_diffusers import State
from ksgen_core.types import KeyStep, Plan

BF16, FP32 = torch.bfloat16, torch.float32


def fill(part: nn.Module, device: torch.device, seed: int) -> None:
    """Give a component random bfloat16 weights in main memory, drawn on the device, the same for a seed and a device.

    Norms begin as they do in training, biases with zero. What a model keeps in float32 stays so, as when it is read.
    """
    chance = torch.Generator(device).manual_seed(seed)
    wide = getattr(part, "_keep_in_fp32_modules", None) or ()
    for name, weight in list(part.named_parameters()):
        words = name.split(".")
        new = torch.empty(weight.shape, dtype=FP32 if set(words) & set(wide) else BF16, device=device)
        if words[-1] == "gamma" or (weight.ndim == 1 and words[-1] == "weight"):
            new.fill_(1)
        elif weight.ndim == 1:
            new.zero_()
        else:
            new.normal_(std=0.02, generator=chance)
        setattr(part.get_submodule(".".join(words[:-1])), words[-1], nn.Parameter(new.cpu(), requires_grad=False))
    part.eval()


def load(model: Model, device: torch.device, tiny: bool) -> Any:
    """A `KeyStepModel` or a `ClipModel` whose weights are in main memory: it is not settled yet."""
    import diffusers

    parts = {}
    with quietly():
        for seed, (name, part) in enumerate(model.parts.items()):
            parts[name] = empty(part, tiny)
            fill(parts[name], device, seed)
        kind, config = model.scheduler
        pipe = getattr(diffusers, model.pipeline)(
            scheduler=getattr(diffusers, kind)(**config), **parts, **dict(model.more)
        )
    if model.adapter and model.tiny_adapter:
        made: Any = KeyStepModel(pipe, adapter=adapter(pipe.unet, *(model.tiny_adapter if tiny else model.adapter)))
        made.resampler.to(BF16)
    else:
        made = (WanClipModel if model.pipeline == "WanImageToVideoPipeline" else ClipModel)(pipe)
    made.device, made.dtype = device, BF16
    if isinstance(made, ClipModel):
        made.prepare()
    return made


def adapter(unet: Any, vision_width: int, width: int, tokens: int) -> dict[str, torch.Tensor]:
    """The tensors of an IP-Adapter-Plus file for this UNet, random."""
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    across = unet.config.cross_attention_dim
    resampler = IPAdapterPlusImageProjection(
        vision_width, across, width, depth=DEPTH, heads=width // HEAD_WIDTH, num_queries=tokens
    )
    tensors = {f"image_proj.{key}": tensor for key, tensor in resampler_to_file(resampler.state_dict()).items()}
    chance, modules = torch.Generator().manual_seed(0), dict(unet.named_modules())
    places = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(places):
        shape = modules[name.removesuffix(".processor")].to_k.weight.shape
        for exit_ in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * number + 1}.{exit_}.weight"] = 0.02 * torch.randn(shape, generator=chance)
    return tensors


def measure(model: str, options: Mapping[str, Any], device: str, tiny: bool, updates: int) -> dict[str, Any]:
    """Seconds an update, seconds for what is made, and the highest memory, with these memory options.

    `updates` are at least 2: the first one is not counted, since it holds what comes before it.
    """
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    try:
        made = load(MODELS[model], where, tiny)
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        settle(made, MemoryOptions(**options))
        states, work, count, usual = _work(made, MODELS[model], tiny, updates)
        started, moments = time.perf_counter(), []
        for _ in states:
            if where.type == "cuda":
                torch.cuda.synchronize()
            moments.append(time.perf_counter())
        whole = time.perf_counter() - started
    except (KSGenError, RuntimeError, ValueError, NotImplementedError) as error:
        return {"refused": str(error).strip().partition("\n")[0]}
    update = (moments[-1] - moments[0]) / (len(moments) - 1)
    beside = max(0.0, whole - len(moments) * update)
    return {
        "parameters": sum(weight.numel() for weight in made.parts()[made.denoisers[0]].parameters()),
        "work": work,
        "update_seconds": update,
        "made_seconds": (beside + usual * update) / count,
        "peak_mb": peak_mb(device),
    }


def _work(made: Any, model: Model, tiny: bool, updates: int) -> tuple[Iterator[Any], str, int, int]:
    """What yields a state after every update, in words what it makes, how many of it, and its usual updates."""
    length, width = model.tiny_text if tiny else model.text
    chance = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=chance).to(made.device, BF16)

    if model.pipeline == "StableDiffusionXLPipeline":
        count = 2 if tiny else 4
        pooled = made.pipe.text_encoder_2.config.projection_dim
        tokens = made.resampler.latents.shape[1]
        given, none = (
            Condition(drawn(count, length, width), drawn(count, pooled), drawn(count, tokens, width)) for _ in range(2)
        )
        settings: Any = complete(made, DrawSettings("text_only", updates=updates))
        usual = complete(made, DrawSettings("text_only")).updates
        plan = Plan("make", tuple(KeyStep("do", seed=k) for k in range(count)))
        events = draw_batch(made, range(count), plan, given, none, settings)
        height, wide = settings.size
        return (e for e in events if isinstance(e, State)), f"{count} images of {wide}x{height}", count, usual or 0

    chosen = made.defaults
    height, wide = model.tiny_size if tiny else made.family.area
    frames = model.tiny_frames if tiny else chosen.frames
    names = ["prompt_embeds", *(["prompt_attention_mask"] if model.pipeline.startswith("LTX2") else [])]
    embeds = [drawn(1, length, width), torch.ones(1, length, dtype=torch.long, device=made.device)]
    text = dict(zip(names, embeds, strict=False))
    shot = Shot(
        image=torch.rand(height, wide, 3, generator=chance),
        last=None,
        frames=frames,
        updates=updates,
        guidance=chosen.guidance,
        guidance_2=chosen.guidance_2,
        fps=chosen.fps,
        seed=0,
        text=text,
        negative=text,
    )
    return made.make(shot), f"{frames} frames of {wide}x{height}", 1, chosen.updates
