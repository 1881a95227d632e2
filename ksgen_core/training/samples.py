"""What a part in training makes of instances that it is not trained on: small pictures, true above made.

Legend: H, W a picture's height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import write_atomically
from ..clips.render import render_clip
from ..clips.settings import RenderSettings
from ..clips.wan_diffusers import WanClipModel
from ..keysteps.policies import DrawSettings
from ..keysteps.sdxl_diffusers import KeyStepModel, draw_key_steps
from ..pipeline import KeyImage, StepClip
from ..pixels import from_uint8, to_pil
from ..tabletop.instances import Instance, make
from .pool import TRAIN_INSTANCES

EVERY = 1000
"""Iterations from one picture to the next."""
PICTURES, FILMS = 4, 2
"""Instances of a grid of key images, and of one of films: so few that it costs a second or two."""
FRAMES = (4, 10, 16)
"""The frames of a film that are shown; the first is given, or easy."""
KEY_IMAGES = {
    "backbone": DrawSettings("reference", updates=8),
    "adapter": DrawSettings("skill_transformer", updates=8),
}
"""How key images are drawn: by the policy for which all is trained when this part is."""
CLIPS = RenderSettings(updates=6, guidance=1.0, frames=17)
PARTS = ("vae", *KEY_IMAGES, "clip_vae", "clip_decoder", "clips")
"""The parts that make pictures."""


def write_pictures(part: str, model: KeyStepModel | WanClipModel, run: Path, iteration: int) -> None:
    """Write `<run>/<part>-pictures/<iteration>.png`; nothing for a part that makes no pictures.

    The model is taken as it is at this moment: during a training that is not the moving average, which is smoother.
    Neither the model nor any random state changes. Raises `KSGenError` if the file cannot be written.
    """
    if part not in PARTS:
        return
    count = FILMS if isinstance(model, WanClipModel) else PICTURES
    instances = [make("train", TRAIN_INSTANCES + number) for number in range(count)]
    with _at_rest(model), torch.no_grad():
        pairs = [pair for instance in instances for pair in _pairs(part, model, instance)]
    grid = torch.cat([torch.cat(row, dim=1) for row in zip(*pairs, strict=True)])
    write_atomically(run / f"{part}-pictures/{iteration:06d}.png", to_pil(grid).save)


def _pairs(part: str, model: KeyStepModel | WanClipModel, instance: Instance) -> list[tuple[Tensor, Tensor]]:
    """True and made pictures [H, W, 3] of a step in the middle of this instance."""
    step = len(instance.run.steps) // 2
    if isinstance(model, WanClipModel):
        true = from_uint8(instance.film(step))
        if part == "clips":
            events = render_clip(model, true[0], instance.plan, step, CLIPS)
            made = next(event.clip.frames for event in events if isinstance(event, StepClip))
        else:
            made = model.decode_latents(model.encode_frames(true[None]))[0].cpu()
        return [(true[frame], made[frame]) for frame in FRAMES]
    true = from_uint8(instance.first_frame(step, model.size[0]))
    if part == "vae":
        return [(true, model.decode_latents(model.encode_latents(true[None]))[0].cpu())]
    image = from_uint8(instance.first_frame(0, model.size[0]))
    events = draw_key_steps(model, image, instance.plan, [step], KEY_IMAGES[part])
    return [(true, event.image) for event in events if isinstance(event, KeyImage)]


@contextmanager
def _at_rest(model: KeyStepModel | WanClipModel) -> Iterator[None]:
    """All modules as for drawing, thereafter as each of them was."""
    before = {module: module.training for part in model.parts().values() for module in part.modules()}
    for part in model.parts().values():
        part.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
