"""Models in the host's hands: which folders it offers, and how its memory management loads and frees their components.

torch and the core's models are imported inside the functions that need them: loading the pack loads neither.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from .host import EMBEDDED, MINI, MODEL_FOLDER, find_folder, require_packages
from .model_files import subfolders, weights_size

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.build import Models
    from ..ksgen_core.clips.clip_diffusers import ClipModel
    from ..ksgen_core.keysteps.edit_diffusers import EditModel
    from ..ksgen_core.keysteps.sdxl_diffusers import KeyStepModel


def model_folder_names() -> list[str]:
    """What the load node offers: the embedded models, then every complete folder in the host's `ksgen` folders."""
    found = {
        path.name
        for path in subfolders(MODEL_FOLDER)
        if os.path.isdir(path / "keysteps") or os.path.isdir(path / "clips")
    }
    return [EMBEDDED, *sorted(found - {EMBEDDED})]


def open_models(name: str) -> HostModels:
    """The models called `name`. Raises `KSGenError` for an unknown name, with the folders that were looked at."""
    from ..ksgen_core import build

    return HostModels(build.open_folder(models_folder(name)))


def models_folder(name: str) -> Path:
    """Where the models called `name` are. Raises `KSGenError` as `open_models` does."""
    return MINI if name == EMBEDDED else find_folder(MODEL_FOLDER, name, "models folder", "it")


class HostModels:
    """Models whose parts are loaded when first used, and moved to the device by the host's memory management.

    What travels on the KSGEN_MODELS wire. The host caches it, so a part is read from disk once, unless main memory is
    too short for the models of two stages.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self._loaded: dict[str, tuple[Any, HostResidence]] = {}
        _ALIVE.add(self)

    def key_steps(self) -> KeyStepModel | EditModel:
        """The key image model; its components come to the host's device when they work."""
        return self._ready("key_steps")

    def clips(self) -> ClipModel:
        """The clip model; its components come to the host's device when they work."""
        return self._ready("clips")

    def _ready(self, stage: str) -> Any:
        import comfy.model_management as memory

        if stage not in self._loaded:
            require_packages("diffusers", "transformers", "accelerate")
            from ..ksgen_core.residence_diffusers import free_now

            device = memory.get_torch_device()
            # A component, its hook and its patcher know each other: models that are not wanted any more would stay
            # beside the new ones until Python looks for such rings.
            free_now(device)
            self._make_room(stage, device)
            residence = HostResidence(device)
            self._loaded[stage] = getattr(self.models, stage)(device, dtype_for(device), residence), residence
        model, residence = self._loaded[stage]
        residence.begin()
        return model

    def _make_room(self, stage: str, device: torch.device) -> None:
        """Let go of other models, on this wire or another, until main memory has room for those of the stage.

        The host would keep them as long as a wire is cached: it knows of tensors there, not of models.
        """
        import comfy.model_management as memory
        import torch

        from ..ksgen_core.residence_diffusers import free_now

        needed = weights_size(self.models.stage_folder(FOLDERS[stage]))
        for models in list(_ALIVE):
            for other in list(models._loaded):
                if memory.get_free_memory(torch.device("cpu")) >= needed:
                    return
                del models._loaded[other]
                free_now(device)


FOLDERS = {"key_steps": "keysteps", "clips": "clips"}
"""What the core calls the folder of each stage."""
_ALIVE: WeakSet[HostModels] = WeakSet()


class HostResidence:
    """A core `Residence`: the host's model management sees, loads and frees the components.

    Each has a patcher of its own, so the text encoders can leave while the backbone works.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._patchers: dict[torch.nn.Module, Any] = {}
        self._here: torch.nn.Module | None = None

    def begin(self) -> None:
        """The host may have moved anything since the last node of ours ran."""
        self._here = None

    def need(self, part: torch.nn.Module, streamed: bool, room: int) -> None:
        import comfy.model_management as memory

        if part is self._here:
            return
        if streamed:
            if part in self._patchers:  # the ladder was climbed: it is not the host's to load any more
                memory.unload_model_and_clones(self._patchers.pop(part))
            memory.free_memory(room + memory.minimum_inference_memory(), self.device)
        else:
            if part not in self._patchers:
                self._patchers[part] = patcher(part, self.device)
            load([self._patchers[part]], room)
        self._here = part


def patcher(part: torch.nn.Module, device: torch.device) -> Any:
    """The host's handle on one component.

    The holder is needed because the patcher writes `.device`, which diffusers and transformers models refuse. It has
    the component's class name, since that is what the host's log says of it.
    Never the host's patcher for dynamic memory: that leaves everything on the device for layers of the host's own to
    push out while they compute, and other layers push nothing out and cannot be pushed out.
    """
    import comfy.model_management
    import comfy.model_patcher
    import torch

    holder = type(type(part).__name__, (torch.nn.Module,), {})()
    holder.inner = part
    offload = comfy.model_management.unet_offload_device()
    holder.device = offload
    return comfy.model_patcher.ModelPatcher(holder, load_device=device, offload_device=offload)


def load(patchers: list[Any], room: int = 0) -> None:
    """Let the host load components whole, with about `room` bytes beside them, or run out of memory.

    Where there is little the host loads models in part, which only layers of its own can compute with.
    """
    import comfy.model_management as memory

    memory.load_models_gpu(patchers, memory_required=room, force_full_load=True)
    for one in patchers:
        one.model.to(one.load_device)  # with --novram the host loads in part all the same


def dtype_for(device: torch.device) -> torch.dtype:
    """bfloat16 or float16 where the host would use it on this device, else float32."""
    import comfy.model_management as memory
    import torch

    if memory.is_device_cpu(device):
        return torch.float32
    if memory.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if memory.should_use_fp16(device) else torch.float32
