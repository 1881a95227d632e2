"""Short ways to draw with the tiny key-step models that `keysteps_fixtures` makes."""

from __future__ import annotations

import torch

from ksgen_core.keysteps.policies import DrawSettings
from ksgen_core.keysteps.sdxl_diffusers import draw_key_steps
from ksgen_core.pipeline import KeyImage
from ksgen_core.types import KeyStep, Plan

TEXTS = [
    "put the tea bag into the mug",
    "pour hot water into the mug",
    "stir the tea with the spoon",
    "take the tea bag out",
]
PLAN = Plan("make a cup of tea", tuple(KeyStep(text, seed=10 + k) for k, text in enumerate(TEXTS)))
FAST = DrawSettings(updates=4, guidance=3.5, batch=1)


def picture(seed=0, height=32, width=32):
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def draw(model, steps, image=None, plan=PLAN, settings=FAST):
    events = draw_key_steps(model, picture() if image is None else image, plan, steps, settings)
    return {event.step: event.image for event in events if isinstance(event, KeyImage)}


def weights(model):
    return {f"{name}.{key}": t for name, part in model.parts().items() for key, t in part.state_dict().items()}
