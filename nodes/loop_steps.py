"""The nodes that 'Step Loop End' adds to the graph for each step: what gives its pictures, keeps its result, goes on.

They never stand in a workflow; the host finds them by their ids in a running prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import InputImpl, io
from comfy_execution.graph import ExecutionBlocker

from ..ksgen_core.errors import KSGenError
from ..ksgen_core.loop.graph import KEEP, NEXT, OUTPUTS, PICTURES
from ..ksgen_core.loop.settings import KEY_IMAGES
from . import host, loop_host, sockets
from .loop_results import write

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.cache import ResultCache
    from ..ksgen_core.loop.run import Loop, StepRun

CATEGORY = f"{sockets.CATEGORY}/loop"
NO_CLIPS = "This loop makes key images and has no clips. Take its results from 'key images'."
# They could be had from the clips, but a picture of every step in memory, wanted or not, is what the loop avoids.
NO_KEY_IMAGES = (
    "No key images came into this loop. Connect them to 'Step Loop Start', or take first frames from 'Clips to Frames'."
)
INNER = "Added to the running graph by 'Step Loop End'; not for use in a workflow."


@dataclass(eq=False)
class Run:
    """A loop on its way: what the nodes of its steps hand on. It travels as an object, so that the host remembers none
    of them beyond a prompt.

    `new` are the steps that had no result at the start, `copied` the nodes of the step in work.
    """

    end: str
    loop: Loop
    cache: ResultCache
    steps: list[StepRun]
    always: list[str]
    new: set[int]
    copied: list[str] = field(default_factory=list)

    def keys(self) -> list[str]:
        return [step.key for step in self.steps if step.result is not None]


RunWire = io.Custom("KSGEN_LOOP_RUN")


def results_outputs(videos: type[Any] = io.Video, as_list: bool = False) -> list[io.Output]:
    """What a loop gives. `videos` is one list as a single object on the way through the added nodes."""
    return [
        sockets.Clips.Output("clips", display_name="clips", tooltip="One clip per step, in order, read from disk."),
        io.Image.Output(
            "key_images",
            display_name="key images",
            tooltip="One picture per step: those made, or those that came in.",
        ),
        sockets.Plan.Output("plan", display_name="plan", tooltip="The steps that have a result, with their seeds."),
        videos.Output("videos", display_name="videos", is_output_list=as_list, tooltip="One video per step, a list."),
        io.String.Output("report", display_name="report", tooltip="How many steps were remembered and made."),
    ]


def go_on(run: Run) -> io.NodeOutput:
    """The next step whose result is not there, as a piece of graph, or, if none is left, the results."""
    for k, step in enumerate(run.steps):
        if step.there or not step.wanted:
            continue
        # A step that is the same in all, or another server, may have made it in the meantime.
        if (found := run.cache.find(step.key)) is None:
            return _expand(run, step)
        run.steps[k] = replace(step, result=found)
        run.cache.remember(step.address, step.key, run.loop.plan.steps[k].lock)
    return _finish(run)


def _expand(run: Run, step: StepRun) -> io.NodeOutput:
    from ..ksgen_core.loop.run import own_id

    keep, following = (own_id(run.end, step.number, name) for name in ("keep", "next"))
    # What keeps the result comes first: of nodes that are ready the host runs the first that is an output node, and a
    # preview or a save beside the result that fails must not cost the result.
    kept = {"result": list(step.copy.result), "run": run, "number": step.number}
    nodes: dict[str, dict[str, Any]] = {keep: {"class_type": KEEP, "inputs": kept}}
    for node_id, node in step.copy.nodes.items():
        # The front end shows what a copy does on the user's own node.
        shown = {"override_display_id": step.copy.origin[node_id]} if node_id in step.copy.origin else {}
        nodes[node_id] = {**node, **shown}
    run.copied = list(step.copy.nodes)
    nodes[following] = {"class_type": NEXT, "inputs": {"run": run, "kept": [keep, 0], "number": step.number}}
    return io.NodeOutput(*[[following, slot] for slot in range(len(results_outputs()))], expand=nodes)


def _finish(run: Run) -> io.NodeOutput:
    from ..ksgen_core.loop.results import clip_of

    there = [step for step in run.steps if step.there]
    if not there:
        raise KSGenError(f"None of the steps {run.loop.settings.steps!r} has a result. Choose steps that are made.")
    run.cache.trim(run.keys())
    plan = replace(run.loop.plan, steps=tuple(run.loop.plan.steps[step.number] for step in there))
    report = _report(run, len(there))
    if run.loop.settings.makes == KEY_IMAGES:
        none: Any = ExecutionBlocker(NO_CLIPS)
        outputs: tuple[Any, ...] = (none, _key_images(there), plan, none, report)
    else:
        clips = tuple(clip_of(step.result) for step in there if step.result is not None)
        videos = [InputImpl.VideoFromFile(str(clip.path)) for clip in clips]
        given = run.loop.key_images
        starts: Any = ExecutionBlocker(NO_KEY_IMAGES) if given is None else given[[step.number for step in there]]
        outputs = (clips, starts, plan, videos, report)
    return io.NodeOutput(*outputs, ui={"text": (report,)})


def _report(run: Run, count: int) -> str:
    left_out, given = len(run.steps) - count, sum(step.given is not None for step in run.steps)
    remembered = len(run.steps) - len(run.new)
    parts = [f"{remembered - given} remembered", f"{count - remembered} made"]
    parts += [f"{left_out} left out"] * bool(left_out) + ["the first is the initial picture"] * bool(given)
    text = f"{len(run.steps)} steps: {', '.join(parts)}."
    steps = run.loop.plan.steps
    if new := [str(step.number + 1) for step in run.steps if steps[step.number].lock and step.number in run.new]:
        text += f" Locked, but without a result before: {', '.join(new)}."
    if run.always:
        text += f" Nothing is remembered behind {', '.join(run.always)}: such nodes say that they always change."
    return text


def _key_images(there: Sequence[StepRun]) -> torch.Tensor:
    """The pictures that were made `[S, H, W, 3]`; the initial one comes in their size."""
    import torch

    from ..ksgen_core.loop.results import frames_of
    from ..ksgen_core.pixels import fit

    made = {step.number: frames_of(step.result)[0] for step in there if step.result is not None}
    sizes = {number + 1: (picture.shape[1], picture.shape[0]) for number, picture in made.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"step {number}: {width}x{height}" for number, (width, height) in sizes.items())
        raise KSGenError(f"The key images have different sizes ({listed}). Let your nodes make one size; all are kept.")
    if made:
        height, width = next(iter(made.values())).shape[:2]
        made |= {step.number: fit(step.given, height, width) for step in there if step.given is not None}
    else:
        made = {step.number: step.given[0] for step in there if step.given is not None}
    return torch.stack([made[step.number] for step in there])


class KSGenLoopStep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenLoopStep",
            display_name="Step Loop: Values of a Step",
            category=CATEGORY,
            description=INNER,
            search_aliases=["step loop internals"],
            is_dev_only=True,
            inputs=[
                sockets.Loop.Input("loop", tooltip="The loop."),
                io.Int.Input("number", tooltip="Which step, counted from 0."),
                io.String.Input("carried", tooltip="The name of the previous step's result."),
                io.String.Input(
                    "known", tooltip="What each output that is used is: a value, or the digest of a picture."
                ),
            ],
            outputs=[io.AnyType.Output(name, tooltip=f"See 'Step Loop Start': {name}.") for name in OUTPUTS],
        )

    @classmethod
    def execute(cls, loop: Loop, number: int, carried: str, known: str) -> io.NodeOutput:
        import json

        said = json.loads(known)
        values = {
            name: _picture(loop, name, number, carried) if name in PICTURES else value
            for name, (_, value) in said.items()
        }
        return io.NodeOutput(*[values.get(name) for name in OUTPUTS])


def _picture(loop: Loop, name: str, number: int, carried: str) -> torch.Tensor | None:
    from ..ksgen_core.loop.results import frames_of

    if not (carried and name.startswith("previous")):
        return loop.picture(name, number)
    result = loop_host.result_cache().find(carried)
    if result is None:
        raise KSGenError(f"The result of the step before step {number + 1} is gone from disk. Queue again.")
    frames = frames_of(result)
    return frames if name == "previous_frames" else frames[-1:].clone()


class KSGenLoopKeep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenLoopKeep",
            display_name="Step Loop: Keep a Result",
            category=CATEGORY,
            description=INNER,
            search_aliases=["step loop internals"],
            is_dev_only=True,
            is_input_list=True,
            is_output_node=True,
            inputs=[
                sockets.results_input("result", tooltip="What the body made of the step."),
                RunWire.Input("run", tooltip="The loop on its way."),
                io.Int.Input("number", tooltip="Which step, counted from 0."),
            ],
            outputs=[io.Int.Output("kept", tooltip="The step, once its result is on disk.")],
        )

    @classmethod
    def execute(cls, result: list[Any], run: list[Run], number: list[int]) -> io.NodeOutput:
        loop, steps, cache = run[0].loop, run[0].steps, run[0].cache
        step, own = steps[number[0]], loop.plan.steps[number[0]]
        settings = loop.settings
        about = {
            "loop": settings.name or settings.makes,
            "goal": loop.plan.goal,
            "step": step.number + 1,
            "text": own.text,
        }
        kept = cache.keep(step.key, lambda folder: write(folder, result, loop, step.number), about)
        cache.remember(step.address, step.key, own.lock)
        steps[step.number] = replace(step, result=kept)
        cache.used(run[0].keys())
        host.show_progress(sum(one.there for one in steps), len(steps))
        return io.NodeOutput(step.number)


class KSGenLoopNext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenLoopNext",
            display_name="Step Loop: Next Step",
            category=CATEGORY,
            description=INNER,
            search_aliases=["step loop internals"],
            is_dev_only=True,
            enable_expand=True,
            inputs=[
                RunWire.Input("run", tooltip="The loop on its way."),
                io.Int.Input("kept", raw_link=True, tooltip="What keeps the result of the step in work."),
                io.Int.Input("number", tooltip="Which step that is, counted from 0."),
            ],
            outputs=results_outputs(io.Custom("KSGEN_VIDEOS")),
            hidden=[io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, run: Run, kept: list[Any], number: int) -> io.NodeOutput:
        # `kept` is a link, so that this runs though a blocked result was not kept: else the loop would silently end.
        loop_host.forget(cls.hidden.dynprompt, run.copied)
        if run.steps[number].result is None:
            raise KSGenError(
                f"Step {number + 1} has no result: a node of the loop's body blocked it. "
                "Let its switch give something at every step, or leave the step out with 'steps' of 'Step Loop Start'."
            )
        return go_on(run)
