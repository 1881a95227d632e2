"""The node that shows some frames of a film in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import sockets

if TYPE_CHECKING:
    import torch


class KSGenContactSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenContactSheet",
            display_name="Contact Sheet",
            category=f"{sockets.CATEGORY}/native",
            description="Some frames of a film side by side in one picture: how the previous step went, as a reference "
            "for a model that edits pictures.",
            search_aliases=["image grid", "frames to grid", "thumbnails", "reference picture", "collage", "storyboard"],
            inputs=[
                io.Image.Input("frames", tooltip="The frames of a clip, e.g. 'previous frames' of 'Step Loop Start'."),
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many frames are shown, evenly spread from the first to the last; 1 shows the last. A "
                    "film that has fewer is shown in whole.",
                ),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="How many frames stand side by side at most. 0: the picture is as square as possible.",
                ),
            ],
            outputs=[io.Image.Output("sheet", display_name="sheet", tooltip="One picture, row by row, without gaps.")],
        )

    @classmethod
    def execute(cls, frames: torch.Tensor, count: int, columns: int) -> io.NodeOutput:
        from ..ksgen_core.sheet import frame_sheet

        return io.NodeOutput(frame_sheet(frames[..., :3], count, columns)[None])
