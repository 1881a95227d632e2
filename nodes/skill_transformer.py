"""Nodes that bring the Skill Transformer into the host's own graph: its tokens steer a native SDXL MODEL.

So the user's sampler, LoRA, ControlNet and VAE draw the key images.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_api.latest import io

from ..ksgen_core.errors import KSGenError
from . import host, sockets
from .model_files import state

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.keysteps.image_tokens import ImageTokens
    from ..ksgen_core.types import Plan
    from .image_tokens import HostSkillTransformer

ADAPTER_KIND = "ipadapter"
"""The kind of model folder that the packs for IP-Adapters share."""
NO_SKILL_TRANSFORMER = "none"
SKILL_FILE, ADAPTER_FILE = "keysteps/skill_transformer.safetensors", "keysteps/ip_adapter/ip-adapter-plus.safetensors"
FORESEE, INITIAL = "skill transformer", "initial picture"


def register_folder() -> None:
    folder_paths.add_model_folder_path(ADAPTER_KIND, str(Path(folder_paths.models_dir) / ADAPTER_KIND))


def skill_files() -> dict[str, Path]:
    """The Skill Transformers by the name they are offered under: those in models/ksgen, then the embedded one."""
    own = {**_in_model_folders("*.safetensors"), **_in_model_folders(f"*/{SKILL_FILE}")}
    return {**own, host.EMBEDDED: host.MINI / SKILL_FILE}


def adapter_files() -> dict[str, Path]:
    """The IP-Adapter files by name: those of the host's kind, those in models/ksgen, then the embedded one."""
    shared = {
        name.replace("\\", "/"): Path(path)
        for name in folder_paths.get_filename_list(ADAPTER_KIND)
        # The host lists links to nowhere, too.
        if name.endswith(".safetensors") and (path := folder_paths.get_full_path(ADAPTER_KIND, name))
    }
    return {**shared, **_in_model_folders(f"*/{ADAPTER_FILE}"), host.EMBEDDED: host.MINI / ADAPTER_FILE}


def _in_model_folders(pattern: str) -> dict[str, Path]:
    roots = [Path(root) for root in folder_paths.get_folder_paths(host.MODEL_FOLDER)]
    files = ((root, path) for root in roots for path in sorted(root.glob(pattern)))
    return {path.relative_to(root).as_posix(): path for root, path in files if os.path.isfile(path)}


def _find(files: dict[str, Path], name: str, what: str, folder: str) -> Path:
    if name not in files:
        raise KSGenError(f"There is no {what} {name!r}. Put it into ComfyUI's {folder}, as .safetensors.")
    return files[name]


class KSGenLoadSkillTransformer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenLoadSkillTransformer",
            display_name="Load Skill Transformer",
            category=f"{sockets.CATEGORY}/native",
            description="A Skill Transformer and the IP-Adapter-Plus that it speaks through, for an SDXL model of "
            "ComfyUI's own loaders.",
            search_aliases=["skill transformer", "ip adapter", "ipadapter plus", "key step", "image prompt"],
            inputs=[
                io.Combo.Input(
                    "skill_transformer",
                    display_name="skill transformer",
                    options=[*skill_files(), NO_SKILL_TRANSFORMER],
                    tooltip="From models/ksgen; it belongs to one IP-Adapter. 'embedded' fits the small models of this "
                    "pack, no full-size SDXL. 'none' leaves the IP-Adapter alone: tokens of the initial picture.",
                ),
                io.Combo.Input(
                    "ip_adapter",
                    display_name="IP-Adapter",
                    options=list(adapter_files()),
                    tooltip="An IP-Adapter-Plus file for SDXL (.safetensors) from models/ipadapter or models/ksgen.",
                ),
            ],
            outputs=[
                sockets.SkillTransformer.Output(
                    "skill_transformer", display_name="skill transformer", tooltip="For 'Foresee Key Steps'."
                ),
            ],
        )

    @classmethod
    def execute(cls, skill_transformer: str, ip_adapter: str) -> io.NodeOutput:
        adapter = _find(adapter_files(), ip_adapter, "IP-Adapter", "models/ipadapter")
        skill = None
        if skill_transformer != NO_SKILL_TRANSFORMER:
            skill = _find(skill_files(), skill_transformer, "Skill Transformer", "models/ksgen")
        host.require_packages("diffusers")
        from .image_tokens import HostSkillTransformer

        return io.NodeOutput(HostSkillTransformer(skill, adapter))

    @classmethod
    def fingerprint_inputs(cls, skill_transformer: str = "", ip_adapter: str = "") -> str:
        """Files that were written anew under the same name are read again."""
        return state((skill_files().get(skill_transformer), adapter_files().get(ip_adapter)))


class KSGenForeseeTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenForeseeTokens",
            display_name="Foresee Key Steps",
            category=f"{sockets.CATEGORY}/native",
            description="Foresees what the first picture of every step looks like, as image tokens: from the initial "
            "picture and the texts of all steps.",
            search_aliases=["skill transformer", "image tokens", "predict key images", "ip adapter embeds", "foresee"],
            inputs=[
                sockets.SkillTransformer.Input(
                    "skill_transformer", display_name="skill transformer", tooltip="From 'Load Skill Transformer'."
                ),
                io.Clip.Input("clip", tooltip="The CLIP of the SDXL model: both text encoders."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="From 'Load CLIP Vision': the image encoder of the IP-Adapter, for most SDXL adapters of "
                    "the plus kind ViT-H.",
                ),
                sockets.Plan.Input("plan", tooltip="The key steps to foresee."),
                io.Image.Input(
                    "image",
                    tooltip="The initial picture, the same as for the plan. One picture; its middle square is "
                    "looked at.",
                ),
                io.Combo.Input(
                    "policy",
                    options=[FORESEE, INITIAL],
                    default=FORESEE,
                    tooltip="skill transformer: each step gets the tokens that are foreseen for it. initial picture: "
                    "every step gets those of the initial picture, which is plain IP-Adapter-Plus, for comparison.",
                ),
            ],
            outputs=[
                sockets.ImageTokens.Output(
                    "image_tokens",
                    display_name="image tokens",
                    tooltip="Those of every step, for 'Apply Image Tokens'. Step 1 has those of the initial picture.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        skill_transformer: HostSkillTransformer,
        clip: Any,
        clip_vision: Any,
        plan: Plan,
        image: torch.Tensor,
        policy: str,
    ) -> io.NodeOutput:
        from ..ksgen_core.keysteps.image_tokens import ImageTokens, check_steps, foresee
        from ..ksgen_core.pixels import one_picture
        from .image_tokens import image_states, text_states

        picture = one_picture(image)
        skill, steps = skill_transformer.skill, [step.text for step in plan.steps]
        if policy == INITIAL:
            skill = None
        elif skill is None:
            raise KSGenError(
                "There is no Skill Transformer to foresee with. Choose one in 'Load Skill Transformer', or the policy "
                f"'{INITIAL}'."
            )
        else:
            check_steps(skill, len(steps))
        states = image_states(clip_vision, picture[None])
        texts = None if skill is None else text_states(clip, steps)
        first, empty = skill_transformer.tokens(states)
        tokens = first.expand(len(steps), -1, -1) if skill is None or texts is None else foresee(skill, first, *texts)
        return io.NodeOutput(ImageTokens(tokens.float().cpu(), empty.float().cpu(), skill_transformer.adapter))


def _step_input() -> io.Input:
    return io.Int.Input(
        "step",
        default=0,
        min=0,
        max=999,
        tooltip="Which step, counted from 1. 0 gives a list of all steps: the nodes behind run once for each.",
    )


class KSGenApplyImageTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenApplyImageTokens",
            display_name="Apply Image Tokens",
            category=f"{sockets.CATEGORY}/native",
            description="An SDXL MODEL that the image tokens of a step steer beside the text, for any sampler, LoRA "
            "and ControlNet.",
            search_aliases=["apply ip adapter", "skill transformer", "image prompt", "patch model", "ipadapter"],
            inputs=[
                io.Model.Input("model", tooltip="An SDXL model, with or without LoRA."),
                sockets.ImageTokens.Input(
                    "image_tokens", display_name="image tokens", tooltip="From 'Foresee Key Steps'."
                ),
                _step_input(),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=-1.0,
                    max=5.0,
                    step=0.05,
                    tooltip="How strongly the tokens steer. 0 is the bare model.",
                ),
                io.Float.Input(
                    "start_percent",
                    display_name="start percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="From where in the sampling the tokens steer; 0 is its begin.",
                ),
                io.Float.Input(
                    "end_percent",
                    display_name="end percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Up to where in the sampling the tokens steer; 1 is its end.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model",
                    display_name="model",
                    is_output_list=True,
                    tooltip="The model for the step, or a list of one for each step.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        image_tokens: ImageTokens,
        step: int,
        weight: float,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        from .image_tokens import apply

        steps = image_tokens.steps(step)
        return io.NodeOutput([apply(model, image_tokens, k, weight, start_percent, end_percent) for k in steps])


class KSGenTokensToConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenTokensToConditioning",
            display_name="Image Tokens to Conditioning",
            category=f"{sockets.CATEGORY}/native",
            description="The image tokens of a step as CONDITIONING: words of a text that nobody wrote. For trials; "
            "'Apply Image Tokens' is what the IP-Adapter was trained for.",
            search_aliases=["image tokens", "conditioning concat", "skill transformer", "tokens as text"],
            inputs=[
                sockets.ImageTokens.Input(
                    "image_tokens", display_name="image tokens", tooltip="From 'Foresee Key Steps'."
                ),
                _step_input(),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="A text; the tokens are put behind it. Without one they stand alone, with an empty pooled "
                    "text, for 'Conditioning (Concat)'.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    is_output_list=True,
                    tooltip="The conditioning of the step, or a list of one for each step.",
                ),
            ],
        )

    @classmethod
    def execute(cls, image_tokens: ImageTokens, step: int, conditioning: Any = None) -> io.NodeOutput:
        from .image_tokens import as_conditioning

        return io.NodeOutput([as_conditioning(image_tokens, k, conditioning) for k in image_tokens.steps(step)])
