"""Nodes that make, read and take apart plans."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from . import host, sockets

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.types import Plan


def _plan_outputs() -> list[io.Output]:
    return [
        sockets.Plan.Output("plan", display_name="plan", tooltip="The ordered key steps."),
        io.String.Output(
            "plan_json", display_name="plan as JSON", tooltip="The plan as a ksgen.plan/1 document, to read or to edit."
        ),
        io.String.Output(
            "step_texts",
            display_name="step texts",
            is_output_list=True,
            tooltip="The text of every step, as a list: nodes behind it run once per step.",
        ),
    ]


def _plan_output(plan: Plan) -> io.NodeOutput:
    document = json.dumps(plan.to_json(), indent=2, ensure_ascii=False)
    return io.NodeOutput(plan, document, [step.text for step in plan.steps])


class KSGenPlanSkill(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenPlanSkill",
            display_name="Plan a Skill",
            category=sockets.CATEGORY,
            description="Finds the key steps that reach a goal, in a library of skills. The picture travels along; "
            "it is not looked at yet.",
            search_aliases=["key steps", "planner", "how to", "instructions", "storyboard plan"],
            inputs=[
                sockets.Models.Input(
                    "models", tooltip="From 'Load KS-Gen Models'; the planner searches the library in their folder."
                ),
                io.Image.Input("image", tooltip="The initial picture: the state before the first step. One picture."),
                io.String.Input(
                    "goal",
                    multiline=True,
                    dynamic_prompts=False,
                    default="make a cup of tea",
                    tooltip="The skill in a few words, e.g. 'make a cup of tea'.",
                ),
            ],
            outputs=_plan_outputs(),
        )

    @classmethod
    def execute(cls, models: host.HostModels, image: torch.Tensor, goal: str) -> io.NodeOutput:
        from ..ksgen_core import build
        from ..ksgen_core.pixels import one_picture
        from ..ksgen_core.types import Query

        query = Query(one_picture(image), goal)
        retrieve, plan = build.planner(models.models)
        (planned,) = host.watch(plan(query, retrieve(query)))
        return _plan_output(planned.plan)


class KSGenPlanFromText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenPlanFromText",
            display_name="Plan from Text",
            category=sockets.CATEGORY,
            description="Makes a plan of what you write: one step a line, or a ksgen.plan/1 JSON document.",
            search_aliases=["steps from text", "write plan", "plan json", "manual plan"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="one step a line, or a plan as JSON",
                    tooltip="One key step a line; empty lines are skipped. Text that starts with { is read as a "
                    "ksgen.plan/1 JSON document, whose own goal counts.",
                ),
                io.String.Input(
                    "goal",
                    default="",
                    dynamic_prompts=False,
                    tooltip="The skill in a few words. Must be empty when the text is a JSON document.",
                ),
            ],
            outputs=_plan_outputs(),
        )

    @classmethod
    def execute(cls, text: str, goal: str) -> io.NodeOutput:
        from ..ksgen_core.errors import KSGenError
        from ..ksgen_core.types import KeyStep, Plan

        if text.lstrip().startswith("{"):
            if goal.strip():
                raise KSGenError(
                    f"The JSON document has a goal of its own, but the goal {goal!r} was given too. Clear it."
                )
            return _plan_output(_plan_from_json(text))
        steps = tuple(KeyStep(line.strip()) for line in text.splitlines() if line.strip())
        return _plan_output(Plan(goal.strip(), steps))


class KSGenLoadPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenLoadPlan",
            display_name="Load Plan File",
            category=sockets.CATEGORY,
            description="Reads a plan file (ksgen.plan/1 JSON) from ComfyUI's input folder.",
            search_aliases=["open plan", "plan file", "plan json", "import plan"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.plan_files(),
                    tooltip="A .json file in ComfyUI's input folder, e.g. the plan.json of a saved storyboard.",
                ),
            ],
            outputs=_plan_outputs(),
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        from ..ksgen_core.storyboard import read_plan

        return _plan_output(read_plan(host.input_file(file)))

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        path = host.input_file(file)
        return f"{path} {path.stat().st_mtime_ns}"


def _plan_from_json(text: str) -> Plan:
    from ..ksgen_core.errors import KSGenError
    from ..ksgen_core.types import Plan

    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise KSGenError(f"The text is not valid JSON: {error}. A plan is a ksgen.plan/1 JSON document.") from error
    return Plan.from_json(document)


class KSGenStepLists(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenStepLists",
            display_name="Plan to Lists",
            category=f"{sockets.CATEGORY}/native",
            description="Takes a plan apart into lists: any node behind it, native ones too, runs once per step.",
            search_aliases=["for each step", "loop over steps", "split plan", "plan to list", "unpack plan"],
            inputs=[
                sockets.Plan.Input("plan", tooltip="A plan."),
                io.Image.Input(
                    "key_images", display_name="key images", tooltip="The key images of this plan, one per step."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Step k gets this seed + k, unless the plan already fixes a seed for it.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "texts", display_name="texts", is_output_list=True, tooltip="What is done, step by step."
                ),
                io.Image.Output(
                    "images",
                    display_name="key images",
                    is_output_list=True,
                    tooltip="The picture each step starts from.",
                ),
                io.Int.Output("seeds", display_name="seeds", is_output_list=True, tooltip="A seed for each step."),
                io.Int.Output("numbers", display_name="numbers", is_output_list=True, tooltip="1, 2, 3 and so on."),
            ],
        )

    @classmethod
    def execute(cls, plan: Plan, key_images: torch.Tensor, seed: int) -> io.NodeOutput:
        from ..ksgen_core.types import with_seeds

        steps = with_seeds(plan, seed).steps
        check_key_images(plan, key_images)
        return io.NodeOutput(
            [step.text for step in steps],
            [key_images[k : k + 1] for k in range(len(steps))],
            [step.seed for step in steps],
            list(range(1, len(steps) + 1)),
        )


class KSGenSelectStep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenSelectStep",
            display_name="Select Step",
            category=f"{sockets.CATEGORY}/native",
            description="One step of a plan, with its key image.",
            search_aliases=["pick step", "get step", "step text", "one step"],
            inputs=[
                sockets.Plan.Input("plan", tooltip="A plan."),
                io.Int.Input("number", default=1, min=1, max=99, tooltip="Which step, counted from 1."),
                io.Image.Input(
                    "key_images",
                    display_name="key images",
                    optional=True,
                    tooltip="The key images of this plan, one per step. May be left out.",
                ),
            ],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="What is done in this step."),
                io.Image.Output(
                    "image",
                    display_name="key image",
                    tooltip="The picture this step starts from, if key images came in.",
                ),
                io.Int.Output("seed", display_name="seed", tooltip="The seed of this step, or 0 if the plan has none."),
                io.Int.Output("count", display_name="number of steps", tooltip="How many steps the plan has."),
            ],
        )

    @classmethod
    def execute(cls, plan: Plan, number: int, key_images: torch.Tensor | None = None) -> io.NodeOutput:
        from ..ksgen_core.errors import KSGenError

        if number > len(plan.steps):
            raise KSGenError(
                f"Step {number} was asked for, but the plan has {len(plan.steps)}. Choose a smaller number."
            )
        step = plan.steps[number - 1]
        if key_images is None:
            image: Any = ExecutionBlocker("'Select Step' has no key image to give: connect key images to it.")
        else:
            check_key_images(plan, key_images)
            image = key_images[number - 1 : number]
        return io.NodeOutput(step.text, image, step.seed or 0, len(plan.steps))


def check_key_images(plan: Plan, key_images: torch.Tensor) -> None:
    """Raise `KSGenError` unless there is one key image per step."""
    from ..ksgen_core.errors import KSGenError

    if len(key_images) != len(plan.steps):
        raise KSGenError(
            f"The plan has {len(plan.steps)} steps, but {len(key_images)} key image(s) came in. "
            "Connect the key images that 'Draw Key Steps' made for this plan."
        )
