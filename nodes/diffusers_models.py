"""Nodes that load full-size diffusers folders beside the host's own models, and LoRAs on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..ksgen_core.errors import KSGenError
from ..ksgen_core.memory import ATTENTIONS, COSTS
from . import sockets
from .host_models import HostModels
from .model_files import model_folders, state
from .skill_transformer import adapter_files, skill_files

NONE = "none"
OWN = "the folder's own"
BY_HOST, LAYERS = "by ComfyUI", "layer by layer"


def register_folder() -> None:
    """`models/diffusers` is a kind of the host's own; a host that does not know it any more learns it again."""
    folder_paths.add_model_folder_path("diffusers", str(Path(folder_paths.models_dir) / "diffusers"))


def _of_family(folders: dict[str, Path], family: Callable[[Path], object]) -> list[str]:
    """Those of the diffusers folders that `family` does not refuse."""
    found = []
    for name, folder in folders.items():
        try:
            family(folder)
        except KSGenError:
            continue
        found.append(name)
    return found


class KSGenLoadDiffusers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..ksgen_core.clips.families import family_of as clip_family
        from ..ksgen_core.keysteps.families import family_of as key_family

        folders, encoders = model_folders()
        return io.Schema(
            node_id="KSGenLoadDiffusers",
            display_name="Load Diffusers Models",
            category=sockets.CATEGORY,
            description="Full-size models as diffusers folders, in place of the embedded ones: one that draws key "
            "images, one that renders clips. Each part is loaded when it is first used, and ComfyUI frees it again.",
            search_aliases=[
                "diffusers",
                "sdxl",
                "kolors",
                "qwen image edit",
                "kontext",
                "wan",
                "ltx",
                "hunyuan",
                "svd",
            ],
            inputs=[
                io.Combo.Input(
                    "key_model",
                    display_name="key image model",
                    options=[NONE, *_of_family(folders, key_family)],
                    default=NONE,
                    tooltip="A folder in models/diffusers: SDXL, Kolors, Qwen-Image-Edit, FLUX.1 Kontext or FLUX.2 "
                    "Klein. 'none' if key images come from elsewhere.",
                ),
                io.Combo.Input(
                    "clip_model",
                    display_name="clip model",
                    options=[NONE, *_of_family(folders, clip_family)],
                    default=NONE,
                    tooltip="A folder in models/diffusers: Wan 2.1 or 2.2, LTX, LTX-2, HunyuanVideo 1.5, CogVideoX or "
                    "SVD, of the image-to-video kind. 'none' if clips are rendered elsewhere.",
                ),
                io.Combo.Input(
                    "skill_transformer",
                    display_name="skill transformer",
                    options=[OWN, *skill_files()],
                    default=OWN,
                    tooltip="For SDXL and Kolors, from models/ksgen. It belongs to one IP-Adapter and image encoder.",
                ),
                io.Combo.Input(
                    "ip_adapter",
                    display_name="IP-Adapter",
                    options=[OWN, *adapter_files()],
                    default=OWN,
                    tooltip="For SDXL and Kolors: an IP-Adapter-Plus file from models/ipadapter or models/ksgen.",
                ),
                io.Combo.Input(
                    "image_encoder",
                    display_name="image encoder",
                    options=[OWN, *encoders],
                    default=OWN,
                    tooltip="The CLIP vision model that the IP-Adapter was made for: a folder with config.json in "
                    "models/clip_vision or models/diffusers.",
                ),
                io.Combo.Input(
                    "offload",
                    options=[BY_HOST, LAYERS],
                    default=BY_HOST,
                    optional=True,
                    tooltip="by ComfyUI: its memory management loads and frees each component whole. layer by layer: "
                    "the backbone's layers are copied to the device while it works, for backbones larger than the "
                    "device. The same pictures, slower.",
                ),
                io.Boolean.Input("fp8", default=False, optional=True, tooltip=f"8-bit weights. Costs: {COSTS['fp8']}."),
                io.Boolean.Input("tiling", default=False, optional=True, tooltip=f"Costs: {COSTS['tiling']}."),
                io.Combo.Input(
                    "attention",
                    options=list(ATTENTIONS),
                    default="default",
                    optional=True,
                    tooltip="How transformers compute attention: flash, sage and xformers need their Python packages. "
                    "sage changes pictures a little. SDXL and Kolors keep their own way; not for SVD and CogVideoX.",
                ),
                io.Float.Input(
                    "first_block_cache",
                    display_name="first block cache",
                    default=0.0,
                    min=0.0,
                    max=0.9,
                    step=0.01,
                    optional=True,
                    tooltip=f"0 is off, 0.05 to 0.2 is common. Costs: {COSTS['first_block_cache']}. It says nothing to "
                    "SDXL and Kolors; not for SVD, LTX-2, HunyuanVideo 1.5 and FLUX.2 Klein.",
                ),
            ],
            outputs=[
                sockets.Models.Output(
                    "models", display_name="models", tooltip="For 'Draw Key Steps' and 'Render Clips'."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        key_model: str,
        clip_model: str,
        skill_transformer: str,
        ip_adapter: str,
        image_encoder: str,
        offload: str = BY_HOST,
        fp8: bool = False,
        tiling: bool = False,
        attention: str = "default",
        first_block_cache: float = 0.0,
    ) -> io.NodeOutput:
        from ..ksgen_core import build
        from ..ksgen_core.memory import MemoryOptions

        folders, encoders = model_folders()
        parts: dict[str, Any] = {
            "key_folder": _diffusers_folder(key_model, folders),
            "clip_folder": _diffusers_folder(clip_model, folders),
            "skill_transformer": _given(skill_transformer, skill_files(), "Skill Transformer"),
            "adapter": _given(ip_adapter, adapter_files(), "IP-Adapter"),
            "image_encoder": _given(image_encoder, encoders, "image encoder"),
        }
        if parts["key_folder"] is None and parts["clip_folder"] is None:
            raise KSGenError(
                "No model is chosen. Choose a folder that draws key images, one that renders clips, or both."
            )
        memory = MemoryOptions("layers" if offload == LAYERS else "parts", fp8, tiling, attention, first_block_cache)
        return io.NodeOutput(HostModels(build.open_models(**parts, memory=memory)))

    @classmethod
    def fingerprint_inputs(
        cls,
        key_model: str = NONE,
        clip_model: str = NONE,
        skill_transformer: str = OWN,
        ip_adapter: str = OWN,
        image_encoder: str = OWN,
        **_: object,
    ) -> str:
        """Files that were written anew under the same name are read again."""
        folders, encoders = model_folders()
        parts = (skill_files().get(skill_transformer), adapter_files().get(ip_adapter), encoders.get(image_encoder))
        return state((folders.get(key_model), folders.get(clip_model), *parts))


class KSGenLoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenLoadLora",
            display_name="Load LoRA (KS-Gen Models)",
            category=sockets.CATEGORY,
            description="Puts a LoRA on the model that draws key images or on the one that renders clips.",
            search_aliases=["lora", "diffusers lora", "style", "load lora"],
            inputs=[
                sockets.Models.Input(
                    "models", tooltip="From 'Load KS-Gen Models', 'Load Diffusers Models' or another LoRA."
                ),
                io.Combo.Input(
                    "lora",
                    display_name="LoRA",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A .safetensors file from models/loras that was made for that model.",
                ),
                io.Combo.Input(
                    "put_on",
                    display_name="put on",
                    options=list(PLACES),
                    default=next(iter(PLACES)),
                    tooltip="The model that draws key images, the one that renders clips, or Wan 2.2's second expert, "
                    "which works where little noise is left.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.05,
                    tooltip="How strongly it works. 0: not at all.",
                ),
            ],
            outputs=[
                sockets.Models.Output("models", display_name="models", tooltip="The same models with the LoRA on one."),
            ],
        )

    @classmethod
    def execute(cls, models: HostModels, lora: str, put_on: str, strength: float) -> io.NodeOutput:
        from ..ksgen_core.lora_diffusers import Lora

        path = folder_paths.get_full_path("loras", lora)
        if path is None:
            raise KSGenError(f"There is no LoRA {lora!r} in models/loras. Put it there.")
        field, expert = PLACES[put_on]
        loras = (*getattr(models.models, field), Lora(Path(path), strength, expert))
        return io.NodeOutput(HostModels(replace(models.models, **{field: loras})))

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **_: object) -> str:
        path = lora and folder_paths.get_full_path("loras", lora)
        return state([Path(path)] if path else [])


PLACES = {
    "key image model": ("key_loras", 1),
    "clip model": ("clip_loras", 1),
    "clip model, low-noise expert": ("clip_loras", 2),
}


def _diffusers_folder(name: str, folders: dict[str, Path]) -> Path | None:
    if name == NONE:
        return None
    if name not in folders:
        roots = " or ".join(folder_paths.get_folder_paths("diffusers"))
        raise KSGenError(f"There is no diffusers folder {name!r}. Put it into {roots}.")
    return folders[name]


def _given(name: str, places: dict[str, Path], what: str) -> Path | None:
    if name == OWN:
        return None
    if name not in places:
        raise KSGenError(f"There is no {what} {name!r} any more. Choose one of {', '.join(places) or 'none'}.")
    return places[name]
