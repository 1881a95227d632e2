"""The node that draws the first picture of every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..ksgen_core.keysteps.policies import POLICIES
from . import host, sockets
from .host_models import HostModels

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
                    default="auto",
                    tooltip="auto: the best that the model can. skill_transformer: the Skill Transformer foresees each "
                    "picture from the initial one and all step texts. edit_chain: an image edit model changes the "
                    "initial and the former picture. The others are for comparison: reference keeps the scene without "
                    "foreseeing, image_prompt shows an IP-Adapter the initial picture, text_only sees the step's text "
                    "alone, initial starts every step from the given picture.",
                ),
                io.Int.Input(
                    "updates",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Sampler updates per picture; more is slower and finer. 0: as many as suit the model.",
                ),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="How strongly text and foreseen picture steer. 1 turns guidance off and halves the time. "
                    "0: what suits the model.",
                ),
                sockets.seed_input("Step k is drawn with this seed + k, unless the plan already fixes a seed for it."),
                io.String.Input(
                    "negative", default="", optional=True, multiline=True, tooltip="What the pictures should not show."
                ),
                *sockets.size_inputs("Of the pictures. 0: the model's own size."),
                io.Int.Input(
                    "batch",
                    default=0,
                    min=0,
                    max=999,
                    optional=True,
                    tooltip="How many pictures are drawn together at most; 0: all that do not depend on each other. "
                    "Fewer need less memory. One at a time, a step is the same bit for bit whatever else is drawn.",
                ),
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
        models: HostModels,
        plan: Plan,
        image: torch.Tensor,
        policy: str,
        updates: int,
        guidance: float,
        seed: int,
        negative: str = "",
        width: int = 0,
        height: int = 0,
        batch: int = 0,
    ) -> io.NodeOutput:
        import torch

        from ..ksgen_core.keysteps.policies import DrawSettings
        from ..ksgen_core.keysteps.sdxl_diffusers import draw_key_steps
        from ..ksgen_core.types import with_seeds

        plan = with_seeds(plan, seed)
        steps = range(len(plan.steps))
        settings = DrawSettings(
            policy,
            updates or None,
            guidance or None,
            batch,
            negative,
            sockets.size_of(width, height),
        )
        events = draw_key_steps(models.key_steps(), image, plan, steps, settings)
        pictures = {done.step: done.image for done in host.watch(events)}
        return io.NodeOutput(torch.stack([pictures[k] for k in steps]), plan)
