"""The step loop: the user's own nodes between start and end run once for every key step; results stay on disk."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..ksgen_core.loop.graph import OUTPUTS
from ..ksgen_core.loop.settings import CLIPS, MAKES, SAME_SEED, SEEDS
from . import loop_host, sockets
from .loop_steps import CATEGORY, Run, go_on, results_outputs

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.loop.run import Loop
    from ..ksgen_core.types import Clip, Plan

OUTSIDE = (
    "This node is inside a loop: it gets its values step by step, when 'Step Loop End' runs. "
    "Connect what is behind the loop to the outputs of 'Step Loop End'."
)


class KSGenStepLoopStart(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenStepLoopStart",
            display_name="Step Loop Start",
            category=CATEGORY,
            description="Gives your own nodes everything about a step. What you wire from here to 'Step Loop End' runs "
            "once for every key step, in order; finished steps are kept on disk, and only what changed runs again.",
            search_aliases=["for each step", "loop", "iterate steps", "repeat", "batch steps", "resume"],
            inputs=[
                sockets.Plan.Input("plan", lazy=True, tooltip="The key steps to go through."),
                io.Image.Input(
                    "image",
                    display_name="initial picture",
                    optional=True,
                    lazy=True,
                    tooltip="The picture that the skill begins with. Needed to make key images: it is the first one.",
                ),
                io.Image.Input(
                    "key_images",
                    display_name="key images",
                    optional=True,
                    lazy=True,
                    tooltip="One picture per step, e.g. from 'Draw Key Steps' or from a loop that makes key images.",
                ),
                io.Combo.Input(
                    "makes",
                    options=list(MAKES),
                    default=CLIPS,
                    tooltip="What your nodes make of a step: its clip, or its key image. The first key image is the "
                    "initial picture itself.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Only needed if a graph has several loops that make the same of the same plan: tells the "
                    "results of their locked steps apart.",
                ),
                sockets.seed_input(
                    "For every step whose plan fixes none. Leave it fixed: another seed makes every step anew.",
                    fixed=True,
                ),
                io.Combo.Input(
                    "seeds",
                    options=list(SEEDS),
                    default=SAME_SEED,
                    tooltip="The same seed keeps finished steps when steps are added, deleted or moved. Give a single "
                    "step another seed in 'Edit Plan' to make it anew.",
                ),
                io.Float.Input(
                    "seconds",
                    default=2.0,
                    min=0.1,
                    max=600.0,
                    step=0.1,
                    tooltip="Length of a clip, if the plan says none.",
                ),
                io.Float.Input(
                    "fps", default=16.0, min=1.0, max=120.0, step=0.5, tooltip="Frames a second of the clips."
                ),
                io.Int.Input(
                    "frame_step",
                    display_name="frame step",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="0: frame counts are such as the node takes that 'frames' is connected to. Else this times "
                    "a number, plus 1; Wan and HunyuanVideo want 4, LTX wants 8.",
                ),
                io.String.Input(
                    "steps",
                    default="",
                    tooltip="Which steps to make, e.g. '2, 4-6'; empty for all. Others are taken from disk if they are "
                    "there, or left out.",
                ),
                sockets.Clips.Input(
                    "clips",
                    optional=True,
                    lazy=True,
                    tooltip="One clip per step, for a second pass over them, e.g. to enlarge them. May be left out.",
                ),
            ],
            outputs=[
                sockets.Loop.Output("loop", display_name="loop", tooltip="To 'Step Loop End'."),
                io.String.Output("text", display_name="text", tooltip="What is done in this step."),
                io.String.Output("before", display_name="before", tooltip="What is seen before the step, or nothing."),
                io.String.Output("after", display_name="after", tooltip="What is seen after the step, or nothing."),
                io.String.Output(
                    "previous_text", display_name="previous text", tooltip="What was done in the step before."
                ),
                io.Image.Output("key_image", display_name="key image", tooltip="The picture this step starts from."),
                io.Image.Output(
                    "next_key_image",
                    display_name="next key image",
                    tooltip="The picture the next step starts from. The last step has none: what it is connected to is "
                    "left empty then.",
                ),
                io.Image.Output("image", display_name="initial picture", tooltip="The picture the skill begins with."),
                io.Image.Output(
                    "previous",
                    display_name="previous",
                    tooltip="The last picture of the previous step's result; at first the initial picture.",
                ),
                io.Image.Output(
                    "previous_frames",
                    display_name="previous frames",
                    tooltip="All frames of the previous step's result; at first the initial picture.",
                ),
                io.Int.Output("seed", display_name="seed", tooltip="The seed of this step."),
                io.Float.Output("seconds", display_name="seconds", tooltip="How long this step should last."),
                io.Int.Output("frames", display_name="frames", tooltip="How many frames that is."),
                io.Float.Output("fps", display_name="fps", tooltip="Frames a second."),
                io.Int.Output("number", display_name="number", tooltip="1, 2, 3 and so on."),
                io.Int.Output("count", display_name="number of steps", tooltip="How many steps the plan has."),
                io.Boolean.Output("is_first", display_name="is first", tooltip="Is it the first step?"),
                io.Boolean.Output("is_last", display_name="is last", tooltip="Is it the last step?"),
                io.Image.Output(
                    "clip_frames",
                    display_name="clip frames",
                    tooltip="The frames of this step's clip, if clips came in.",
                ),
            ],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Look at the loop before anything in front of it runs: what cannot work is refused before hours are spent."""
        from ..ksgen_core.errors import KSGenError
        from ..ksgen_core.loop.graph import find_body, find_loops

        graph, own = loop_host.HostGraph(cls.hidden.dynprompt), cls.hidden.unique_id
        end = find_loops(graph).get(own)
        if end is None:
            raise KSGenError("'Step Loop Start' has no end. Connect its loop directly to 'Step Loop End'.")
        loop_host.refuse_unfit(graph, find_body(graph, own, end))
        lazy = ("plan", "image", "key_images", "clips")
        return [name for name in lazy if name in inputs and inputs[name] is None]

    @classmethod
    def fingerprint_inputs(cls, steps: str = "", **_inputs: Any) -> Any:
        # With some steps left out, what the end gives depends on what is on disk by then.
        return float("nan") if steps.strip() else ""

    @classmethod
    def execute(
        cls,
        plan: Plan,
        *,
        image: torch.Tensor | None = None,
        key_images: torch.Tensor | None = None,
        makes: str,
        name: str,
        seed: int,
        seeds: str,
        seconds: float,
        fps: float,
        frame_step: int,
        steps: str,
        clips: tuple[Clip, ...] | None = None,
    ) -> io.NodeOutput:
        from ..ksgen_core.loop.run import Loop
        from ..ksgen_core.loop.settings import LoopSettings

        settings = LoopSettings(makes, name, seed, seeds, seconds, fps, frame_step, steps)
        loop = Loop.of(plan, settings, image, key_images, clips)
        return io.NodeOutput(loop, *[ExecutionBlocker(OUTSIDE) for _ in OUTPUTS[1:]])


class KSGenStepLoopEnd(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenStepLoopEnd",
            display_name="Step Loop End",
            category=CATEGORY,
            description="Runs the nodes between 'Step Loop Start' and here once for every step whose result is not on "
            "disk yet, and gives the results of all steps.",
            search_aliases=["end of loop", "collect steps", "for each step end", "storyboard of loop"],
            is_output_node=True,
            enable_expand=True,
            inputs=[
                sockets.Loop.Input("loop", tooltip="From 'Step Loop Start'."),
                sockets.results_input(
                    "result",
                    lazy=True,
                    raw_link=True,
                    tooltip="What your nodes make of a step: its frames, a video with its sound, or one picture if the "
                    "loop makes key images.",
                ),
            ],
            outputs=results_outputs(as_list=True),
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        # What the host remembers of this node are paths; they are worthless once results were removed.
        return loop_host.result_cache().generation()

    @classmethod
    def execute(cls, loop: Loop, result: list[Any]) -> io.NodeOutput:
        from ..ksgen_core.errors import KSGenError
        from ..ksgen_core.loop.graph import LOOP, find_body
        from ..ksgen_core.loop.run import look_up

        dynprompt, own = cls.hidden.dynprompt, cls.hidden.unique_id
        graph, cache = loop_host.HostGraph(dynprompt), loop_host.result_cache()
        body = find_body(graph, graph.node(own)["inputs"][LOOP][0], own)
        loop_host.refuse_unfit(graph, body)
        if own not in dynprompt.get_original_prompt() and any(step.lock for step in loop.plan.steps):
            raise KSGenError(
                "Steps of a loop inside a loop cannot be locked: all steps of the outer loop would share them. Lock "
                "the step of the outer loop, or take the lock out of the inner plan."
            )
        runs, always = look_up(graph, body, loop, cache, once=lambda: uuid.uuid4().hex)
        new = {run.number for run in runs if not run.there}
        return go_on(Run(own, loop, cache, runs, sorted(always), new))
