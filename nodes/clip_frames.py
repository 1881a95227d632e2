"""The node that gives the frames of clips back to any other node."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import sockets

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.types import Clip


ALL, FIRST, LAST = "all frames", "first frame", "last frame"
WHICH = (ALL, FIRST, LAST)


class KSGenClipFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenClipFrames",
            display_name="Clips to Frames",
            category=f"{sockets.CATEGORY}/native",
            description="The frames of one clip, or of every clip as a list: any node behind it runs once per clip. "
            "Clips of a step loop come back exactly as they were made, in 8 bits.",
            search_aliases=["clip to images", "get frames", "video components", "select clip", "split clips"],
            inputs=[
                sockets.Clips.Input("clips", tooltip="From 'Step Loop End', 'Render Clips' or 'Collect Clips'."),
                io.Int.Input(
                    "number", default=0, min=0, max=999, tooltip="Which clip, counted from 1; 0 gives all, as a list."
                ),
                io.Combo.Input(
                    "which", options=list(WHICH), default=ALL, tooltip="All frames of a clip, or only one of them."
                ),
            ],
            outputs=[
                io.Image.Output(
                    "frames", display_name="frames", is_output_list=True, tooltip="The frames, clip by clip."
                ),
                io.Float.Output(
                    "fps", display_name="fps", is_output_list=True, tooltip="Frames a second, clip by clip."
                ),
            ],
        )

    @classmethod
    def execute(cls, clips: tuple[Clip, ...], number: int, which: str) -> io.NodeOutput:
        from ..ksgen_core.errors import KSGenError

        if number > len(clips):
            raise KSGenError(f"Clip {number} was asked for, but there are {len(clips)}. Choose a smaller number.")
        chosen = clips[number - 1 : number] if number else clips
        return io.NodeOutput([_frames(clip, which) for clip in chosen], [clip.fps for clip in chosen])


def _frames(clip: Clip, which: str) -> torch.Tensor:
    """All frames `[F, H, W, 3]` of a clip, or one `[1, H, W, 3]`; of the others none is held."""
    from ..ksgen_core.pixels import from_uint8
    from ..ksgen_core.video import first_frame, frames

    if which == ALL:
        return clip.frames
    one = first_frame(clip) if which == FIRST else deque(frames(clip), maxlen=1)[0]
    return from_uint8(one)[None]
