"""Nodes that make plans."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import host, libraries, sockets
from .host_models import HostModels
from .planners import agrees, make_planner, planner_input

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.types import Example, Plan


def plan_outputs() -> list[io.Output]:
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


def plan_output(plan: Plan) -> io.NodeOutput:
    document = json.dumps(plan.to_json(), indent=2, ensure_ascii=False)
    return io.NodeOutput(plan, document, [step.text for step in plan.steps])


def _examples_input() -> io.Input:
    return sockets.Examples.Input(
        "examples",
        optional=True,
        tooltip="From 'Retrieve Examples'. Without it the planner retrieves its own.",
    )


class KSGenPlanSkill(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenPlanSkill",
            display_name="Plan a Skill",
            category=sockets.CATEGORY,
            description="Plans the key steps that lead from a picture to a goal: from a library of skills, or by a "
            "language model that looks at the picture and at the library's examples.",
            search_aliases=["key steps", "planner", "how to", "instructions", "storyboard plan", "llm"],
            inputs=[
                sockets.Models.Input(
                    "models",
                    tooltip="From 'Load KS-Gen Models'; without examples the planner searches the library in their "
                    "folder and that of everyday skills.",
                ),
                io.Image.Input("image", tooltip="The initial picture: the state before the first step. One picture."),
                sockets.goal_input(),
                planner_input(),
                _examples_input(),
            ],
            outputs=plan_outputs(),
        )

    @classmethod
    def execute(
        cls,
        models: HostModels,
        image: torch.Tensor,
        goal: str,
        planner: dict[str, Any] | None = None,
        examples: tuple[Example, ...] | None = None,
    ) -> io.NodeOutput:
        from ..ksgen_core.pixels import one_picture
        from ..ksgen_core.types import Query

        query = Query(one_picture(image), goal)
        make_plan = make_planner(planner)
        (planned,) = host.watch(
            make_plan(query, libraries.examples_for(models, query, agrees(planner)) if examples is None else examples)
        )
        return plan_output(planned.plan)

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Without examples the user's own library is searched, which is no input."""
        return libraries.state()


class KSGenReplan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenReplan",
            display_name="Re-plan from a Step",
            category=f"{sockets.CATEGORY}/planning",
            description="Keeps the steps before one and plans the rest anew, for a later picture of what came out.",
            search_aliases=["replan", "continue plan", "correct plan", "plan the rest"],
            inputs=[
                sockets.Models.Input("models", tooltip="From 'Load KS-Gen Models', as for 'Plan a Skill'."),
                sockets.Plan.Input("plan", tooltip="The plan so far."),
                io.Int.Input(
                    "number",
                    display_name="from step",
                    default=2,
                    min=1,
                    max=999,
                    tooltip="The first step to plan anew, counted from 1. Those before it count as done.",
                ),
                io.Image.Input("image", tooltip="The picture now, before that step. One picture."),
                planner_input(),
                _examples_input(),
            ],
            outputs=plan_outputs(),
        )

    @classmethod
    def execute(
        cls,
        models: HostModels,
        plan: Plan,
        number: int,
        image: torch.Tensor,
        planner: dict[str, Any] | None = None,
        examples: tuple[Example, ...] | None = None,
    ) -> io.NodeOutput:
        from ..ksgen_core.pixels import one_picture
        from ..ksgen_core.planning.remaining import kept_steps, replan
        from ..ksgen_core.retrieval.lexical import words_of
        from ..ksgen_core.types import Query

        query = Query(one_picture(image), plan.goal)
        make_plan = make_planner(planner, [step.text for step in kept_steps(plan, number)])
        found = libraries.examples_for(models, query, agrees(planner)) if examples is None else examples
        (planned,) = host.watch(replan(plan, number, query, found, make_plan, words_of))
        return plan_output(planned.plan)

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Without examples the user's own library is searched, which is no input."""
        return libraries.state()
