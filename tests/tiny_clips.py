"""Tiny but real clip models for tests, made in code once a session, and short ways to render with them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ksgen_core.clips.clip_diffusers import ClipModel
from ksgen_core.clips.render import render_clips
from ksgen_core.clips.settings import RenderSettings
from ksgen_core.pipeline import StepClip
from ksgen_core.training.wan_folder import TINY, new_wan_folder
from ksgen_core.types import KeyStep, Plan

TEXTS = ["put the tea bag into the mug", "pour hot water into the mug", "stir the tea with the spoon"]
PLAN = Plan("make a cup of tea", tuple(KeyStep(text, seed=10 + k) for k, text in enumerate(TEXTS)))
FAST = RenderSettings(updates=3, frames=5)

_kept = TemporaryDirectory(prefix="ksgen-tiny-clips-")


@cache
def clips_folder() -> Path:
    """A clips folder in float32; nobody writes into it."""
    new_wan_folder(_kept.name, TEXTS, TINY, seed=0)
    folder = Path(_kept.name) / "clips"
    ClipModel.load(folder).save(folder, torch.float32)
    return folder


def clip_model() -> ClipModel:
    return ClipModel.load(clips_folder())


def picture(seed: int = 0, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def film(seed: int = 0, frames: int = 5, side: int = 32) -> torch.Tensor:
    """A smooth film [frames, side, side, 3]."""
    noise = torch.rand(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (frames, side, side), mode="trilinear")[0].movedim(0, -1)


def render(model, steps, images=None, plan=PLAN, settings=FAST):
    events = render_clips(model, images or [picture(k) for k in steps], plan, steps, settings)
    return {event.step: event.clip.frames for event in events if isinstance(event, StepClip)}


def weights(model):
    return {f"{name}.{key}": t for name, part in model.parts().items() for key, t in part.state_dict().items()}
