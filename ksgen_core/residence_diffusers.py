"""Where a model's components live while it works.

A *model* here is any object with `parts()`, its components by name; `denoisers`, the names of those that run in every
update; and `device`, where it computes. `settle` carries out the `MemoryOptions` on it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from .checkpoints_diffusers import quietly
from .errors import KSGenError
from .memory import MemoryOptions

ROOM_TO_WORK, MOST_ROOM = 0.25, 12 * 2**30
"""What `auto` leaves free for what is computed: a share of the device's memory, and at most so many bytes. Chosen, not
measured; where it is too little, the ladder is climbed."""
FP8 = torch.float8_e4m3fn


class Residence(Protocol):
    """Brings a component to the device before it works.

    Outside a host that is `OneByOne`; inside ComfyUI the host's model management does it.
    """

    @property
    def device(self) -> torch.device: ...

    def need(self, part: nn.Module, streamed: bool, room: int) -> None:
        """`part` works next, beside its weights with about `room` bytes. `streamed`: it brings its own layers one by
        one, so that only room is wanted."""
        ...


class OneByOne:
    """The component that works is on the device, all others of its model are in main memory."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._here: nn.Module | None = None

    def need(self, part: nn.Module, streamed: bool, room: int) -> None:
        if self._here is part:
            return
        if self._here is not None:
            self._here.to("cpu")
            self._here = None
        if not streamed:
            part.to(self.device)
            self._here = part


@dataclass(frozen=True)
class Settled:
    """How a model was settled: its options with nothing left to "auto", and who moves its components, if anyone."""

    options: MemoryOptions
    residence: Residence | None
    hosted: bool


class _BeforeItWorks(ModelHook):
    """accelerate's kind of hook, which diffusers' VAEs also call for `encode` and `decode`."""

    def __init__(self, residence: Residence, streamed: bool) -> None:
        self.residence, self.streamed = residence, streamed

    @property
    def execution_device(self) -> torch.device:
        """What diffusers' pipelines look for to know where to compute."""
        return self.residence.device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        latents = kwargs.get("hidden_states", args[0] if args else None)
        self.residence.need(module, self.streamed, room_to_work(module, latents))
        return args, kwargs


def device_named(name: str) -> str:
    """The device that `--device` means. Raises `KSGenError` if it cannot be used."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # what torch raises depends on its build
        reason = str(error).partition("\n")[0]
        raise KSGenError(f"--device {name!r} cannot be used ({reason}). Choose another one, or auto.") from error
    return name


def keep_on_device(model: Any) -> None:
    """Where a model's components are if nobody settles it: all on the device where it computes."""
    for part in model.parts().values():
        part.to(model.device)


def settle(model: Any, options: MemoryOptions, residence: Residence | None = None) -> None:
    """Put a model's components where `options` say; `residence` is the host's, if one moves components.

    May be called again with options that save more. Raises `KSGenError` for an option that this model, this device or
    this Python cannot carry out, before anything is moved.
    """
    hosted = residence is not None
    parts, device = model.parts(), torch.device(model.device)
    options = _decided(options, parts, model.denoisers, device, hosted)
    _check(model, options)
    before: Settled | None = getattr(model, "settled", None)
    # accelerate's hooks first: they hold the `forward` that diffusers' hooks had wrapped, and would put it back.
    for part in parts.values():
        remove_hook_from_module(part)
        _unstream(part)
    if options.tiling:
        _tile(parts["vae"])
    if options.fp8 and not (before and before.options.fp8):
        for name in model.denoisers:
            parts[name].enable_layerwise_casting(storage_dtype=FP8, compute_dtype=model.dtype)
    for name in model.denoisers:
        _speed_up(parts[name], name, options, before.options if before else MemoryOptions())
    if options.offload == "none" and not hosted:
        _all_to(device, parts)
        mover = None
    else:
        mover = residence or OneByOne(device)
        streams = streamed_parts({name: size_of(part) for name, part in parts.items()}, model.denoisers, device)
        for name, part in parts.items():
            streamed = options.offload == "layers" and name in streams
            if not hosted or streamed:
                part.to("cpu")
            if streamed:
                _stream(part, device)
            add_hook_to_module(part, _BeforeItWorks(mover, streamed))
    model.settled = Settled(options, mover, hosted)


def _all_to(device: torch.device, parts: Mapping[str, nn.Module]) -> None:
    try:
        for part in parts.values():
            part.to(device)
    except Exception as error:
        if not out_of_memory(error):
            raise
        names = ", ".join(f"{name} {size_of(part) / 2**30:.1f} GB" for name, part in parts.items())
        raise KSGenError(
            f"The components do not fit on {device} together ({names}). Choose the offload 'parts', or 'auto'."
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or this process, has no memory left. Only accelerators have a class of error for it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    words = ("out of memory", "not enough memory", "can't allocate memory", "status_alloc_failed")  # cuBLAS and cuDNN
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def free_now(device: torch.device | str) -> None:
    """Give back what nothing holds any more, to the device and to the system."""
    gc.collect()
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.empty_cache()
    elif kind == "mps":
        torch.mps.empty_cache()
    elif kind == "xpu":
        torch.xpu.empty_cache()
    _trim()


def _trim() -> None:
    """glibc keeps freed memory of the size of weights in its arenas; other systems give it back by themselves."""
    import ctypes
    import sys

    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another libc
            pass


def size_of(part: nn.Module) -> int:
    """Bytes of a component's weights."""
    tensors = [*part.parameters(), *part.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def free_memory(device: torch.device) -> tuple[int, int] | None:
    """Bytes free and bytes in all on a device; None where its memory is the main memory, or it does not say."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total
    if device.type == "xpu":
        return torch.xpu.mem_get_info(device)
    return None


def room_to_work(part: Any, latents: Any) -> int:
    """About how many bytes a transformer computes with beside its weights, from the latents [B, Z, ..., h, w] or tokens
    [B, L, C] that it is given; 0 for other components.

    Rough: a token has a dozen vectors of the inner width at once (residual, normed, queries, keys, values, and four to
    eight of the feed-forward layer). A VAE's decoding is not foreseen: where it is too much, the ladder is climbed.
    """
    config: Any = getattr(part, "config", None)
    heads, width = (getattr(config, name, None) for name in ("num_attention_heads", "attention_head_dim"))
    if not torch.is_tensor(latents) or latents.ndim < 3 or not isinstance(heads, int) or not isinstance(width, int):
        return 0
    if latents.ndim == 3:
        tokens = latents.shape[0] * latents.shape[1]
    else:
        patch: Any = getattr(config, "patch_size", 1)
        channels = getattr(config, "in_channels", latents.shape[1])  # CogVideoX has its frames in front of them
        tokens = latents.numel() // channels // (patch**2 if isinstance(patch, int) else math.prod(patch))
    return 12 * tokens * heads * width * latents.element_size()


def _decided(
    options: MemoryOptions,
    parts: Mapping[str, nn.Module],
    denoisers: tuple[str, ...],
    device: torch.device,
    hosted: bool,
) -> MemoryOptions:
    """The options with "auto" decided by what fits; inside a host components always come by need."""
    if hosted and options.offload != "layers":
        return replace(options, offload="parts")
    if options.offload != "auto":
        return options
    memory = free_memory(device)
    if memory is None:
        return replace(options, offload="none")
    sizes = {name: size_of(part) // (2 if options.fp8 and name in denoisers else 1) for name, part in parts.items()}
    return replace(options, offload=where_it_fits(sizes, *memory))


def streamed_parts(sizes: Mapping[str, int], denoisers: Sequence[str], device: torch.device) -> set[str]:
    """Which components of these bytes come layer by layer when layers do: the backbone, and what alone has no room,
    e.g. a text encoder of 24 GB."""
    memory = free_memory(device)
    room = math.inf if memory is None else memory[1] - _reserved(memory[1])
    return {name for name, size in sizes.items() if name in denoisers or size > room}


def _reserved(total: int) -> int:
    return min(int(ROOM_TO_WORK * total), MOST_ROOM)


def where_it_fits(sizes: Mapping[str, int], free: int, total: int) -> str:
    """The offload that `auto` means for components of these bytes, with so many bytes free of a device's total."""
    room = free - _reserved(total)
    if sum(sizes.values()) <= room:
        return "none"
    return "parts" if max(sizes.values()) <= room else "layers"


def _check(model: Any, options: MemoryOptions) -> None:
    parts = model.parts()
    kinds = {name: type(parts[name]).__name__ for name in model.denoisers}
    if options.tiling and not tiles(model):
        raise KSGenError(f"The VAE of {model.folder}, {type(parts['vae']).__name__}, cannot work on tiles.")
    for name, kind in kinds.items():
        if options.first_block_cache and not hasattr(parts[name], "enable_cache"):
            raise KSGenError(f"FirstBlockCache is for transformers; {name} of {model.folder} is a {kind}. Turn it off.")
        if options.attention != "default" and not _takes_attention(parts[name]):
            raise KSGenError(
                f"The attention of {name} of {model.folder}, a {kind}, cannot be chosen. Leave it at 'default'."
            )
    if options.gpus > 1:
        _check_gpus(options.gpus, torch.device(model.device))


def _check_gpus(gpus: int, device: torch.device) -> None:
    distributed = torch.distributed
    world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if world != gpus:
        raise KSGenError(
            f"{gpus} GPUs are wanted and {world} process(es) run. Start one a GPU: "
            f"torchrun --nproc-per-node {gpus} -m ksgen_core.cli run ... --gpus {gpus}"
        )
    if device.type == "cpu":  # diffusers counts accelerators
        raise KSGenError(f"A clip is split over GPUs, and the device is {device}. Use one process.")


def tiles(model: Any) -> bool:
    """Whether the model's VAE can work on tiles."""
    return hasattr(model.parts().get("vae"), "use_tiling")  # `enable_tiling` also have those that cannot


def _tile(vae: Any) -> None:
    vae.enable_tiling()
    if hasattr(vae, "enable_slicing"):
        vae.enable_slicing()


def _takes_attention(part: nn.Module) -> bool:
    processors = [module.processor for module in part.modules() if hasattr(module, "processor")]
    # Not all: the few layers that refine texts may have their own way.
    return any(hasattr(processor, "_attention_backend") for processor in processors)


def _speed_up(part: Any, name: str, options: MemoryOptions, before: MemoryOptions) -> None:
    """Attention back end, several GPUs and FirstBlockCache, where they differ from what was before."""
    what = ""
    try:
        if options.attention not in ("default", before.attention):
            from diffusers.models.attention_dispatch import attention_backend

            what = f"the attention {options.attention!r}"
            # The method also sets what all other models of this process take by default; on leaving, that is put back.
            with quietly(), attention_backend("native"):
                part.set_attention_backend(options.attention)
        if options.gpus > 1 and before.gpus == 1:
            from diffusers import ContextParallelConfig

            what = "several GPUs"
            part.enable_parallelism(config=ContextParallelConfig(ulysses_degree=options.gpus))
        if options.first_block_cache != before.first_block_cache:
            from diffusers import FirstBlockCacheConfig

            what = "FirstBlockCache"
            if part.is_cache_enabled:
                part.disable_cache()
            if options.first_block_cache:
                part.enable_cache(FirstBlockCacheConfig(threshold=options.first_block_cache))
    # FirstBlockCache takes the first and the last of the blocks out of a list, however few there are.
    except (ImportError, RuntimeError, ValueError, AttributeError, IndexError) as error:
        raise KSGenError(
            f"The {name}, a {type(part).__name__}, cannot work with {what}: {error} Turn that option off."
        ) from error


def _stream(part: nn.Module, device: torch.device) -> None:
    """diffusers' group offload: block after block comes to the device, the next one while this one works; of models
    of transformers, whose blocks it does not know, layer after layer."""
    import diffusers
    from diffusers.hooks import apply_group_offloading

    if device.type == "cpu" and tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 41):
        return  # diffusers before 0.41 streams to accelerators alone; a processor has the layers where they are
    streams = device.type in ("cuda", "xpu")
    apply_group_offloading(
        part,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level" if isinstance(part, diffusers.ModelMixin) else "leaf_level",
        num_blocks_per_group=1,
        use_stream=streams,
        # Pinning everything at once would take main memory as large as the backbone a second time.
        low_cpu_mem_usage=streams,
    )


def _unstream(part: nn.Module) -> None:
    from diffusers.hooks import HookRegistry

    registry: Any = HookRegistry.check_if_exists_or_initialize(part)
    for name in ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading"):
        registry.remove_hook(name, recurse=True)
