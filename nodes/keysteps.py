"""The node that draws the first picture of every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..ksgen_core.keysteps.policies import POLICIES
from . import host, sockets

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.types import Plan

# `last_frame` is not drawn: it is the choice 'last frame of the previous clip' of the clip node.
DRAWN_POLICIES = [policy for policy in POLICIES if policy != "last_frame"]


class KSGenDrawKeySteps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenDrawKeySteps",
            display_name="Draw Key Steps",
            category=sockets.CATEGORY,
            description="Draws the picture that each step starts from. The first one is the given picture.",
            search_aliases=["key images", "key frames", "storyboard images", "skill transformer", "draw steps"],
            inputs=[
                sockets.Models.Input("models", tooltip="From 'Load KS-Gen Models'."),
                sockets.Plan.Input("plan", tooltip="The key steps to draw."),
                io.Image.Input("image", tooltip="The initial picture, the same as for the plan. One picture."),
                io.Combo.Input(
                    "policy",
                    options=DRAWN_POLICIES,
                    default="skill_transformer",
                    tooltip="skill_transformer: the Skill Transformer foresees each picture from the initial one and "
                    "all step texts. The others are for comparison: reference keeps the scene without it, text_only "
                    "sees the step's text alone, initial starts every step from the given picture.",
                ),
                io.Int.Input(
                    "updates",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Sampler updates per picture; more is slower and finer.",
                ),
                io.Float.Input(
                    "guidance",
                    default=3.5,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="How strongly text and foreseen picture steer. 1 turns guidance off and halves the time.",
                ),
                sockets.seed_input("Step k is drawn with this seed + k, unless the plan already fixes a seed for it."),
            ],
            outputs=[
                io.Image.Output("key_images", display_name="key images", tooltip="One picture per step, in order."),
                sockets.Plan.Output(
                    "plan", display_name="plan", tooltip="The same plan, with the seed of every step written in."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        models: host.HostModels,
        plan: Plan,
        image: torch.Tensor,
        policy: str,
        updates: int,
        guidance: float,
        seed: int,
    ) -> io.NodeOutput:
        import torch

        from ..ksgen_core.keysteps.policies import DrawSettings
        from ..ksgen_core.keysteps.sdxl_diffusers import draw_key_steps
        from ..ksgen_core.types import with_seeds

        plan = with_seeds(plan, seed)
        steps = range(len(plan.steps))
        settings = DrawSettings(policy=policy, updates=updates, guidance=guidance)
        events = draw_key_steps(models.key_steps(), image, plan, steps, settings)
        pictures = {done.step: done.image for done in host.watch(events)}
        return io.NodeOutput(torch.stack([pictures[k] for k in steps]), plan)
