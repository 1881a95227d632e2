"""Nodes that write a storyboard into one file to show around: a page, a moving picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from . import host, sockets
from .storyboard import pictures_of, shown_inputs

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.types import Clip, Plan


class KSGenExportPage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenExportPage",
            display_name="Export Storyboard Page",
            category=sockets.CATEGORY,
            description="Writes the storyboard as one HTML file, pictures and clips inside, that any browser shows.",
            search_aliases=["html", "web page", "export storyboard", "share", "print", "instructions"],
            is_output_node=True,
            inputs=[
                sockets.Plan.Input("plan", tooltip="The plan: its goal, its steps and their states are on the page."),
                *shown_inputs("One clip per step, to play on the page."),
                sockets.file_name_input("ksgen/page"),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The path of the HTML file.")],
        )

    @classmethod
    def execute(
        cls,
        plan: Plan,
        *,
        key_images: torch.Tensor | None = None,
        clips: tuple[Clip, ...] | None = None,
        filename_prefix: str,
    ) -> io.NodeOutput:
        from ..ksgen_core.export.page import write_page

        images = pictures_of(plan, key_images, clips)
        path = host.output_file(filename_prefix, ".html")
        write_page(path, plan, images, clips, progress=host.progress())
        return io.NodeOutput(str(path), ui=ui.PreviewText(str(path)))


class KSGenSaveWebP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenSaveWebP",
            display_name="Save Animated WebP",
            category=sockets.CATEGORY,
            description="Saves the clips of all steps, one after the other, as one animated WebP picture.",
            search_aliases=["gif", "animation", "animated image", "webp", "export clips"],
            is_output_node=True,
            inputs=[
                sockets.Clips.Input("clips", tooltip="From 'Render Clips', 'Collect Clips' or a step loop."),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=16383,
                    tooltip="Width of the picture in pixels; the height follows. 0: as the first clip is.",
                ),
                io.Int.Input(
                    "quality", default=80, min=0, max=100, tooltip="0 makes the smallest file, 100 the best picture."
                ),
                sockets.file_name_input("ksgen/skill"),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The path of the WebP file.")],
        )

    @classmethod
    def execute(cls, clips: tuple[Clip, ...], width: int, quality: int, filename_prefix: str) -> io.NodeOutput:
        from ..ksgen_core.export.animation import write_webp

        path = host.output_file(filename_prefix, ".webp")
        write_webp(path, clips, width=width or None, quality=quality, progress=host.progress())
        return io.NodeOutput(str(path), ui=ui.SavedImages([host.saved_file(path)], is_animated=True))
