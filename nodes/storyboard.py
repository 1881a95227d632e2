"""Nodes that show and keep a storyboard."""

from __future__ import annotations

from collections.abc import Iterator
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
                *shown_inputs("The clips, to show middle and end of each step."),
            ],
            outputs=[io.Image.Output("sheet", display_name="sheet", tooltip="One picture of the whole skill.")],
        )

    @classmethod
    def execute(
        cls, plan: Plan, key_images: torch.Tensor | None = None, clips: tuple[Clip, ...] | None = None
    ) -> io.NodeOutput:
        from ..ksgen_core.sheet import sheet

        return io.NodeOutput(sheet(plan, list(pictures_of(plan, key_images, clips)), clips)[None])


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
                key_images_input(),
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
        cls, plan: Plan, *, key_images: torch.Tensor | None = None, clips: tuple[Clip, ...], filename_prefix: str
    ) -> io.NodeOutput:
        from ..ksgen_core.storyboard import SHEET, saving
        from ..ksgen_core.types import Storyboard

        images = pictures_of(plan, key_images, clips)
        folder = host.output_folder(filename_prefix)
        host.finish(saving(Storyboard(plan, tuple(images), clips), folder))
        return io.NodeOutput(str(folder), ui=ui.SavedImages([host.saved_file(folder / SHEET)]))


def check_clips(plan: Plan, clips: tuple[Clip, ...]) -> None:
    """Raise `KSGenError` unless there is one clip per step."""
    from ..ksgen_core.errors import KSGenError

    if len(clips) != len(plan.steps):
        raise KSGenError(
            f"The plan has {len(plan.steps)} steps, but {len(clips)} clip(s) came in. "
            "Connect the clips that were rendered for this plan."
        )


def key_images_input() -> io.Input:
    """The key images of a storyboard, or none."""
    return io.Image.Input(
        "key_images",
        display_name="key images",
        optional=True,
        tooltip="One picture per step. Left out, the first frame of each clip is taken.",
    )


def shown_inputs(clips: str) -> list[io.Input]:
    """Key images, clips, or both; `clips` says what the clips are for."""
    return [
        key_images_input(),
        sockets.Clips.Input("clips", optional=True, tooltip=f"{clips} May be left out if there are key images."),
    ]


def pictures_of(plan: Plan, key_images: torch.Tensor | None, clips: tuple[Clip, ...] | None) -> Iterator[torch.Tensor]:
    """The picture `[H, W, 3]` of every step: its key image or, without, the first frame of its clip, read when it is
    asked for.

    Raises `KSGenError` at once if there are neither key images nor clips, or not as many as steps.
    """
    from ..ksgen_core.errors import KSGenError

    if clips is not None:
        check_clips(plan, clips)
    if key_images is not None:
        check_key_images(plan, key_images)
        return (image.float().cpu() for image in key_images)
    if clips is None:
        raise KSGenError("A storyboard needs key images, or clips to take their first frames from. Connect some.")
    return map(_first_frame, clips)


def _first_frame(clip: Clip) -> torch.Tensor:
    from ..ksgen_core.pixels import from_uint8
    from ..ksgen_core.video import first_frame

    return from_uint8(first_frame(clip))
