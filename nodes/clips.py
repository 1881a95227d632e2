"""Nodes that render, collect and join clips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_api.latest import InputImpl, io

from . import host, sockets
from .host_models import HostModels
from .plan_steps import check_key_images
from .storyboard import check_clips

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.clips.clip_diffusers import ClipModel
    from ..ksgen_core.clips.settings import RenderSettings
    from ..ksgen_core.film.join import FilmSettings
    from ..ksgen_core.film.subtitles import Span
    from ..ksgen_core.pipeline import Fallback, StepClip, Update
    from ..ksgen_core.types import Clip, Plan

KEY_IMAGE = "key image"
LAST_FRAME = "last frame of the previous clip"


class KSGenRenderClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenRenderClips",
            display_name="Render Clips",
            category=sockets.CATEGORY,
            description="Renders one clip per step from its key image and its text.",
            search_aliases=["image to video", "animate steps", "step clips", "wan", "i2v"],
            inputs=[
                sockets.Models.Input("models", tooltip="From 'Load KS-Gen Models'."),
                sockets.Plan.Input("plan", tooltip="From 'Draw Key Steps', so that the seeds are the same."),
                io.Image.Input(
                    "key_images",
                    display_name="key images",
                    tooltip="One picture per step, from 'Draw Key Steps' or edited by you.",
                ),
                io.Combo.Input(
                    "start_from",
                    display_name="start each clip from",
                    options=[KEY_IMAGE, LAST_FRAME],
                    default=KEY_IMAGE,
                    tooltip="Its key image, or the last frame of the clip before it: one unbroken film, in which "
                    "mistakes add up. Then only the first key image is used, and one picture is enough.",
                ),
                io.Int.Input(
                    "updates", default=0, min=0, max=1000, tooltip="Sampler updates per clip. 0: as suits the model."
                ),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="How strongly the step's text steers. 1 turns guidance off and halves the time. 0: what "
                    "suits the model.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=1001,
                    tooltip="Frames per clip; most models take 4 or 8 times a number, plus 1. 0: as suits the model. "
                    "A step that has seconds in the plan lasts as long as that, as nearly as the model can.",
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=120.0,
                    step=0.5,
                    tooltip="Frames a second of the clips. 0: as suits the model.",
                ),
                sockets.seed_input("Step k gets this seed + k, unless the plan already fixes a seed for it."),
                io.String.Input(
                    "negative",
                    default="",
                    optional=True,
                    multiline=True,
                    tooltip="What the clips should not show. Empty: what its makers recommend for the model.",
                ),
                *sockets.size_inputs(
                    "Of the clips. 0: as the key images, shrunk where they have more pixels than suit the model."
                ),
                io.Boolean.Input(
                    "to_next",
                    display_name="end in next key image",
                    default=False,
                    optional=True,
                    tooltip="Each clip ends in the key image of the step after it: one motion without a cut. Wan 2.2 "
                    "14B, Wan 2.1 first/last frame, LTX and LTX-2 can.",
                ),
                io.Image.Input(
                    "end_image",
                    display_name="end image",
                    optional=True,
                    tooltip="With 'end in next key image': what the last clip ends in, e.g. a picture of the finished "
                    "work. Models that only make clips between two pictures need it.",
                ),
            ],
            outputs=[
                sockets.Clips.Output("clips", display_name="clips", tooltip="One clip per step, in order."),
                io.Image.Output(
                    "frames", display_name="frames", tooltip="All frames of all clips, one after the other."
                ),
                io.Image.Output(
                    "key_images", display_name="key images", tooltip="The picture that each clip started from."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        models: HostModels,
        plan: Plan,
        key_images: torch.Tensor,
        start_from: str,
        updates: int,
        guidance: float,
        frames: int,
        fps: float,
        seed: int,
        negative: str = "",
        width: int = 0,
        height: int = 0,
        to_next: bool = False,
        end_image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        import torch

        from ..ksgen_core.clips.render import render_clips
        from ..ksgen_core.clips.settings import RenderSettings
        from ..ksgen_core.types import with_seeds

        chain = start_from == LAST_FRAME
        if not chain:
            check_key_images(plan, key_images)
        plan = with_seeds(plan, seed)
        steps = range(len(plan.steps))
        settings = RenderSettings(
            updates or None,
            guidance or None,
            frames or None,
            fps or None,
            negative or None,
            sockets.size_of(width, height),
            to_next,
        )
        if chain:
            events = _render_chain(models.clips(), key_images[0], plan, settings)
        else:
            ends = {} if end_image is None else {steps[-1]: end_image}
            events = render_clips(models.clips(), list(key_images), plan, steps, settings, ends=ends)
        clips = tuple(done.clip for done in host.watch(events, parts=len(steps) if chain else 1))
        films = [clip.frames for clip in clips]
        starts = torch.stack([film[0] for film in films]) if chain else key_images
        return io.NodeOutput(clips, torch.cat(films), starts)


def _render_chain(
    model: ClipModel, start: torch.Tensor, plan: Plan, settings: RenderSettings
) -> Iterator[Update | StepClip | Fallback]:
    """The clips of all steps, each of which starts where the one before it ended; the first from `start` [H, W, 3]."""
    from ..ksgen_core.clips.render import render_clip
    from ..ksgen_core.pipeline import StepClip
    from ..ksgen_core.pixels import on_8_bit_grid

    for step in range(len(plan.steps)):
        for event in render_clip(model, start, plan, step, settings):
            if isinstance(event, StepClip):
                start = on_8_bit_grid(event.clip.frames[-1])
            yield event


class KSGenCollectClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenCollectClips",
            display_name="Collect Clips",
            category=f"{sockets.CATEGORY}/native",
            description="Gathers frames that native nodes made step by step into clips.",
            search_aliases=["frames to clips", "gather clips", "images to clips", "end of list"],
            is_input_list=True,
            inputs=[
                io.Image.Input("frames", tooltip="The frames of each step, as a list, e.g. of VAE Decode."),
                io.Float.Input(
                    "fps", default=8.0, min=1.0, max=120.0, step=0.5, tooltip="Frames a second of the clips."
                ),
            ],
            outputs=[sockets.Clips.Output("clips", display_name="clips", tooltip="One clip per item of the list.")],
        )

    @classmethod
    def execute(cls, frames: list[torch.Tensor], fps: list[float]) -> io.NodeOutput:
        from ..ksgen_core.types import Clip

        return io.NodeOutput(tuple(Clip.of(film[..., :3].float().cpu(), fps[0]) for film in frames))


class KSGenJoinClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenJoinClips",
            display_name="Join Clips",
            category=sockets.CATEGORY,
            description="Joins the clips of all steps, with their sound, into one video with a chapter per step.",
            search_aliases=["concatenate", "clips to video", "combine video", "skill film", "cross-fade", "chapters"],
            inputs=[
                sockets.Clips.Input("clips", tooltip="From 'Render Clips', 'Collect Clips' or 'Step Loop End'."),
                *film_inputs(),
            ],
            outputs=[io.Video.Output("video", display_name="video", tooltip="The whole skill, for Save Video.")],
        )

    @classmethod
    def execute(
        cls,
        clips: tuple[Clip, ...],
        plan: Plan | None = None,
        cross_fade: float = 0.0,
        titles: bool = False,
        subtitles: bool = True,
        overlap: int = 0,
    ) -> io.NodeOutput:
        from ..ksgen_core.film.join import FilmSettings

        path = host.temp_file("ksgen_skill.mp4")
        join_clips(path, clips, plan, FilmSettings(cross_fade, titles, subtitles, overlap))
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))


def film_inputs() -> list[io.Input]:
    """How clips become a film, as every node asks for it that joins them."""
    return [
        sockets.Plan.Input(
            "plan",
            optional=True,
            tooltip="The plan of the clips: its texts become chapters, subtitles and titles. May be left out.",
        ),
        io.Float.Input(
            "cross_fade",
            display_name="cross-fade",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.05,
            optional=True,
            tooltip="Seconds in which picture and sound go over from clip to clip; at most half of a clip. 0: a cut.",
        ),
        io.Boolean.Input(
            "titles",
            default=False,
            optional=True,
            tooltip="Draw each step's number and text over the first 2 seconds of its clip. Needs the plan.",
        ),
        io.Boolean.Input(
            "subtitles",
            default=True,
            optional=True,
            tooltip="With a plan, add its texts as subtitles that players can switch off.",
        ),
        io.Int.Input(
            "overlap",
            display_name="overlap frames",
            default=0,
            min=0,
            max=64,
            optional=True,
            tooltip="How many frames each clip repeats from the end of the clip before; they are left out. 1 if every "
            "clip starts from the last frame of the previous one.",
        ),
    ]


def join_clips(path: Path, clips: tuple[Clip, ...], plan: Plan | None, settings: FilmSettings) -> list[Span]:
    """Write the film, while the host shows progress and may cancel; when each clip begins and ends in it."""
    from ..ksgen_core.errors import KSGenError
    from ..ksgen_core.film.join import join

    if plan is not None:
        check_clips(plan, clips)
    elif settings.titles:
        raise KSGenError("Titles show the texts of a plan, and none is connected. Connect it, or turn titles off.")
    texts = None if plan is None else [step.text for step in plan.steps]
    return host.finish(join(path, clips, texts, settings))
