"""Nodes between plans and text: plans written by hand, by any other pack's language model, or kept in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from . import host, sockets
from .plan import plan_output, plan_outputs
from .planners import check_limits, step_limits

if TYPE_CHECKING:
    from ..ksgen_core.types import Example, Plan


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
                    tooltip="One key step a line; empty lines and numbers of a list are skipped. Behind a | may stand "
                    "'4 s', 'seed 7' and 'lock'. Text that starts with { is read as a ksgen.plan/1 JSON document, "
                    "whose own goal counts.",
                ),
                io.String.Input(
                    "goal",
                    default="",
                    dynamic_prompts=False,
                    tooltip="The skill in a few words. Must be empty when the text is a JSON document.",
                ),
            ],
            outputs=plan_outputs(),
        )

    @classmethod
    def execute(cls, text: str, goal: str) -> io.NodeOutput:
        from ..ksgen_core.errors import KSGenError
        from ..ksgen_core.planning.lines import read_json, read_lines
        from ..ksgen_core.types import Plan

        if text.lstrip().startswith("{"):
            if goal.strip():
                raise KSGenError(
                    f"The JSON document has a goal of its own, but the goal {goal!r} was given too. Clear it."
                )
            return plan_output(read_json(text))
        return plan_output(Plan(goal.strip(), read_lines(text)))


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
            outputs=plan_outputs(),
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        from ..ksgen_core.storyboard import read_plan

        return plan_output(read_plan(host.input_file(file)))

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        path = host.input_file(file)
        return f"{path} {path.stat().st_mtime_ns}"


class KSGenPlanPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenPlanPrompt",
            display_name="Plan Prompt",
            category=f"{sockets.CATEGORY}/planning",
            description="Writes the prompt for any language model node; 'Plan from Reply' reads what it answers.",
            search_aliases=["llm prompt", "planner prompt", "ask llm", "system prompt", "instructions"],
            inputs=[
                sockets.goal_input(),
                *step_limits(),
                io.Boolean.Input(
                    "picture",
                    default=True,
                    tooltip="Whether the language model is shown the initial picture as well. Connect it to that node.",
                ),
                sockets.Examples.Input(
                    "examples", optional=True, tooltip="From 'Retrieve Examples': plans that the model may follow."
                ),
            ],
            outputs=[
                io.String.Output("prompt", display_name="prompt", tooltip="The whole prompt in one text."),
                io.String.Output(
                    "system", display_name="system prompt", tooltip="The rules alone, for nodes that take them apart."
                ),
                io.String.Output("user", display_name="user prompt", tooltip="The question alone: examples and goal."),
            ],
        )

    @classmethod
    def execute(
        cls,
        goal: str,
        fewest: int,
        most: int,
        picture: bool,
        examples: tuple[Example, ...] = (),
    ) -> io.NodeOutput:
        from ..ksgen_core.planning import wording

        check_limits(fewest, most)
        system = wording.system_text(fewest, most, picture)
        user = wording.user_text(goal, examples)
        whole = wording.whole_prompt(goal, examples, fewest=fewest, most=most, picture=picture)
        return io.NodeOutput(whole, system, user)


class KSGenPlanFromReply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenPlanFromReply",
            display_name="Plan from Reply",
            category=f"{sockets.CATEGORY}/planning",
            description="Reads the plan in what a language model answered to 'Plan Prompt'. A reply that is no whole "
            "plan is refused, never repaired.",
            search_aliases=["parse reply", "llm to plan", "json to plan", "string to plan"],
            inputs=[
                io.String.Input(
                    "reply",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    tooltip="The answer: one JSON object with the steps, prose around it allowed. Connect the STRING "
                    "output of a language model node.",
                ),
                io.String.Input(
                    "goal",
                    default="make a cup of tea",
                    dynamic_prompts=False,
                    tooltip="The skill in a few words: the goal of the plan.",
                ),
                *step_limits(),
                sockets.Examples.Input(
                    "examples", optional=True, tooltip="The examples that the model was shown: the plan names them."
                ),
            ],
            outputs=plan_outputs(),
        )

    @classmethod
    def execute(
        cls, reply: str, goal: str, fewest: int, most: int, examples: tuple[Example, ...] = ()
    ) -> io.NodeOutput:
        from ..ksgen_core.planning.reply import plan_from_reply

        check_limits(fewest, most)
        sources = [example.source for example in examples]
        return plan_output(plan_from_reply(reply, goal, sources=sources, planner="text", fewest=fewest, most=most))


class KSGenEditPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenEditPlan",
            display_name="Edit Plan",
            category=f"{sockets.CATEGORY}/planning",
            description="Shows a plan as lines and takes your own lines instead: add, leave out, move, reword steps.",
            search_aliases=["change plan", "reorder steps", "fix plan", "rewrite steps", "lock step"],
            is_output_node=True,
            inputs=[
                sockets.Plan.Input("plan", tooltip="The plan to edit."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="empty: the plan stays as it is; else one step a line",
                    tooltip="One step a line; leave it empty to keep the plan. A line with the words of a step is that "
                    "step, with its states and seed. Behind a | may stand '4 s', 'seed 7' and 'lock'. Text that starts "
                    "with { is a whole ksgen.plan/1 JSON document.",
                ),
            ],
            outputs=[
                *plan_outputs(),
                io.String.Output(
                    "lines", display_name="lines", tooltip="The plan as lines, to copy into the text and change."
                ),
            ],
        )

    @classmethod
    def execute(cls, plan: Plan, text: str) -> io.NodeOutput:
        from ..ksgen_core.planning.lines import edit_plan, write_lines

        edited = edit_plan(plan, text)
        lines = write_lines(edited)
        return io.NodeOutput(*plan_output(edited).args, lines, ui=ui.PreviewText(lines))
