"""Nodes that show and keep a storyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from . import host, sockets
from .plan_steps import check_key_images

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.types import Clip, Plan


class KSGenStoryboard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenStoryboard",
            display_name="Storyboard Sheet",
            category=sockets.CATEGORY,
            description="All steps on one sheet: number, text, key image and, with clips, how each step goes on.",
            search_aliases=["contact sheet", "comic", "captions", "image grid"],
            inputs=[
                sockets.Plan.Input("plan", tooltip="The plan that the key images belong to."),
                io.Image.Input("key_images", display_name="key images", tooltip="One picture per step."),
                sockets.Clips.Input(
                    "clips", optional=True, tooltip="The clips, to show middle and end of each step. May be left out."
                ),
            ],
            outputs=[io.Image.Output("sheet", display_name="sheet", tooltip="One picture of the whole skill.")],
        )

    @classmethod
    def execute(cls, plan: Plan, key_images: torch.Tensor, clips: tuple[Clip, ...] | None = None) -> io.NodeOutput:
        from ..ksgen_core.sheet import sheet

        check_key_images(plan, key_images)
        if clips is not None:
            check_clips(plan, clips)
        return io.NodeOutput(sheet(plan, list(key_images.float().cpu()), clips)[None])


class KSGenSaveStoryboard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenSaveStoryboard",
            display_name="Save Storyboard",
            category=sockets.CATEGORY,
            description="Saves plan, key images, clips, sheet, and the film with chapters and subtitles into a folder.",
            search_aliases=["export storyboard", "save clips", "save plan", "write storyboard"],
            is_output_node=True,
            inputs=[
                sockets.Plan.Input("plan", tooltip="The plan."),
                io.Image.Input("key_images", display_name="key images", tooltip="One picture per step."),
                sockets.Clips.Input("clips", tooltip="One clip per step."),
                io.String.Input(
                    "filename_prefix",
                    display_name="folder name",
                    default="ksgen/storyboard",
                    tooltip="Name of the folder in the output folder; a number is added, so nothing is overwritten.",
                ),
            ],
            outputs=[
                io.String.Output("folder", display_name="folder", tooltip="The path of the folder that was written.")
            ],
        )

    @classmethod
    def execute(
        cls, plan: Plan, key_images: torch.Tensor, clips: tuple[Clip, ...], filename_prefix: str
    ) -> io.NodeOutput:
        from ..ksgen_core.storyboard import SHEET, saving
        from ..ksgen_core.types import Storyboard

        check_key_images(plan, key_images)
        check_clips(plan, clips)
        folder = host.output_folder(filename_prefix)
        host.finish(saving(Storyboard(plan, tuple(key_images.float().cpu()), clips), folder))
        return io.NodeOutput(str(folder), ui=ui.SavedImages([host.saved_file(folder / SHEET)]))


def check_clips(plan: Plan, clips: tuple[Clip, ...]) -> None:
    """Raise `KSGenError` unless there is one clip per step."""
    from ..ksgen_core.errors import KSGenError

    if len(clips) != len(plan.steps):
        raise KSGenError(
            f"The plan has {len(plan.steps)} steps, but {len(clips)} clip(s) came in. "
            "Connect the clips that were rendered for this plan."
        )
