"""Nodes that take plans apart, for any other node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from . import sockets

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.types import Plan


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
                    "key_images",
                    display_name="key images",
                    optional=True,
                    tooltip="The key images of this plan, one per step. May be left out.",
                ),
                sockets.seed_input("Step k gets this seed + k, unless the plan already fixes a seed for it."),
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
    def execute(cls, plan: Plan, *, key_images: torch.Tensor | None = None, seed: int) -> io.NodeOutput:
        from ..ksgen_core.types import with_seeds

        steps = with_seeds(plan, seed).steps
        if key_images is None:
            missing: Any = ExecutionBlocker("'Plan to Lists' has no key images to give: connect key images to it.")
            images = [missing] * len(steps)
        else:
            check_key_images(plan, key_images)
            images = [key_images[k : k + 1] for k in range(len(steps))]
        return io.NodeOutput(
            [step.text for step in steps],
            images,
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
                io.Int.Input("number", default=1, min=1, max=999, tooltip="Which step, counted from 1."),
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
