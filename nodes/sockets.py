"""The wires of our own. Everything else travels as the host's native types."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ksgen_core.errors import KSGenError

Models = io.Custom("KSGEN_MODELS")
"""A `host_models.HostModels`."""

Plan = io.Custom("KSGEN_PLAN")
"""A `ksgen_core.types.Plan`."""

Library = io.Custom("KSGEN_LIBRARY")
"""A `ksgen_core.retrieval.search.SkillSearch`."""

Examples = io.Custom("KSGEN_EXAMPLES")
"""A tuple of `ksgen_core.types.Example`, the best one first."""

Clips = io.Custom("KSGEN_CLIPS")
"""A tuple of `ksgen_core.types.Clip`, one per step."""

Loop = io.Custom("KSGEN_LOOP")
"""A `ksgen_core.loop.run.Loop`."""

SkillTransformer = io.Custom("KSGEN_SKILL_TRANSFORMER")
"""An `image_tokens.HostSkillTransformer`."""

ImageTokens = io.Custom("KSGEN_IMAGE_TOKENS")
"""A `ksgen_core.keysteps.image_tokens.ImageTokens`."""

CATEGORY = "KS-Gen"


def goal_input() -> io.String.Input:
    """The skill that is wanted, as every node asks for it that looks for a plan."""
    return io.String.Input(
        "goal",
        multiline=True,
        dynamic_prompts=False,
        default="make a cup of tea",
        tooltip="The skill in a few words, e.g. 'make a cup of tea'.",
    )


def seed_input(tooltip: str, *, fixed: bool = False) -> io.Input:
    """A seed of 64 bits. `fixed`: the front end leaves it as it is after a run, unless the user says otherwise."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**64 - 1,
        control_after_generate=io.ControlAfterGenerate.fixed if fixed else True,
        tooltip=tooltip,
    )


def file_name_input(default: str) -> io.Input:
    """The name of a file that a node writes into the output folder."""
    return io.String.Input(
        "filename_prefix",
        display_name="file name",
        default=default,
        tooltip="Name of the file in the output folder; a number is added, so nothing is overwritten.",
    )


def results_input(name: str, **options: Any) -> io.Input:
    """Whatever a step of a loop may result in: pictures, a video, or the files of Video Helper Suite's combine node."""
    return io.MultiType.Input(name, [io.Image, io.Video, io.Custom("VHS_FILENAMES")], **options)


def size_inputs(tooltip: str) -> list[io.Input]:
    """Width and height in pixels, both 0 for a size that is found out."""
    return [
        io.Int.Input(name, default=0, min=0, max=8192, step=8, optional=True, tooltip=tooltip)
        for name in ("width", "height")
    ]


def size_of(width: int, height: int) -> tuple[int, int] | None:
    """What `size_inputs` give, as (height, width). Raises `KSGenError` if only one of them is given."""
    if bool(width) != bool(height):
        raise KSGenError(f"A size is a width and a height, got {width} x {height}. Give both, or 0 for both.")
    return (height, width) if width else None
