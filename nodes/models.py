"""Nodes that give the models, and the embedded text encoder as the host's CONDITIONING."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ksgen_core.errors import KSGenError
from . import sockets
from .host import EMBEDDED
from .host_models import HostModels, model_folder_names, models_folder, open_models
from .model_files import state


class KSGenLoadModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenLoadModels",
            display_name="Load KS-Gen Models",
            category=sockets.CATEGORY,
            description="The models that draw key images and render clips. Each part is loaded when it is first used.",
            search_aliases=["ks-gen", "key step", "skill models", "skill transformer", "load models"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=model_folder_names(),
                    default=EMBEDDED,
                    tooltip="'embedded' are the small models that ship with the pack. Other names are folders of yours "
                    "in ComfyUI's models/ksgen folder, laid out like ksgen_core/mini.",
                ),
            ],
            outputs=[
                sockets.Models.Output("models", display_name="models", tooltip="For the other KS-Gen nodes."),
            ],
        )

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        return io.NodeOutput(open_models(folder))

    @classmethod
    def fingerprint_inputs(cls, folder: str = EMBEDDED) -> str:
        """Files that were written anew under the same name are read again."""
        return state([models_folder(folder)])


class KSGenNativeText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenNativeText",
            display_name="Encode Text for Native Clips",
            category=f"{sockets.CATEGORY}/native",
            description="Encodes a text with the clip models' own text encoder, as CONDITIONING for the host's "
            "Wan nodes. ComfyUI has no loader for a text encoder as small as the embedded one.",
            search_aliases=["text encode", "conditioning", "umt5", "wan text", "clip text encode"],
            inputs=[
                sockets.Models.Input("models", tooltip="From 'Load KS-Gen Models'."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    tooltip="The description of a step. Connect the texts of 'Plan to Lists' to encode every step. "
                    "Leave it empty for the negative conditioning.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", display_name="conditioning", tooltip="For Wan Image To Video, positive or negative."
                ),
            ],
        )

    @classmethod
    def execute(cls, models: HostModels, text: str) -> io.NodeOutput:
        from ..ksgen_core.clips.render import encode_text_native
        from ..ksgen_core.clips.wan_diffusers import WanClipModel

        model = models.clips()
        if not isinstance(model, WanClipModel):
            raise KSGenError(
                f"This node encodes for ComfyUI's Wan nodes, and the clip model is {model.family.name}. Choose a Wan "
                "folder, or the host's own text encoder nodes."
            )
        conditioning: list[list[Any]] = [[encode_text_native(model, text), {}]]
        return io.NodeOutput(conditioning)
