"""Renders clips with a model of any family: sizes, lengths and texts, then the pipeline's own call for each clip.

Legend: F frames, H, W pixels, L tokens, C their width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import pixels
from ..errors import KSGenError
from ..ladder_diffusers import with_ladder, with_ladder_once
from ..pipeline import Fallback, StepClip, Update
from ..sampling_diffusers import State, relayed
from ..types import Plan, with_seeds
from .checks import check_size, check_wishes
from .families import check_frames, legal_frames
from .settings import Defaults, RenderSettings
from .ways import Shot

if TYPE_CHECKING:
    from .clip_diffusers import ClipModel
    from .wan_diffusers import WanClipModel


def render_clip(
    model: ClipModel,
    image: Tensor,
    plan: Plan,
    step: int,
    settings: RenderSettings | None = None,
    end: Tensor | None = None,
) -> Iterator[Update | StepClip | Fallback]:
    """Render the clip of step `step` (number from 0) from its key image [H, W, 3], its first frame.

    `end` is the next step's key image, which the clip ends in with `settings.to_next`. Yields an `Update` per
    sampler update and then the `StepClip` (float32 0..1 on the CPU, see `clip_size`). A step without a seed counts its
    from 0. Raises `KSGenError` if the model cannot do what is asked for.
    """
    return render_clips(model, [image], plan, [step], settings, ends={} if end is None else {step: end})


def render_clips(
    model: ClipModel,
    images: Sequence[Tensor],
    plan: Plan,
    steps: Sequence[int],
    settings: RenderSettings | None = None,
    *,
    ends: Mapping[int, Tensor] | None = None,
) -> Iterator[Update | StepClip | Fallback]:
    """Render the clips of `steps` (numbers from 0), which do not depend on each other; `images` has one for each.

    As `render_clip`. `ends` are the pictures [H, W, 3] to end in by the number of the step; those that it lacks are
    the next steps' in `images`. A step's `seconds` become the nearest legal number of frames. Numbers of updates count
    through all steps.
    """
    settings = settings or RenderSettings()
    if wrong := [k for k in steps if not 0 <= k < len(plan.steps)]:
        raise ValueError(f"the plan has steps 0..{len(plan.steps) - 1}, got {wrong}")
    if len(images) != len(steps):
        raise ValueError(f"every step needs its key image, got {len(images)} for {len(steps)} steps")
    check_wishes(model.family, settings)
    images = [pixels.one_picture(image) for image in images]
    ends = _ends(model, images, plan, steps, settings, ends or {})
    plan, chosen = with_seeds(plan, 0), model.defaults.over(settings)
    check_frames(model.family, chosen.frames)
    seconds = [plan.steps[k].seconds for k in steps]
    frames = [chosen.frames if s is None else legal_frames(model.family, s, chosen.fps) for s in seconds]
    sizes = [clip_size(model, image, settings.size) for image in images]
    works = [
        _Work(k, _fitted(image, size), _fitted(ends[k], size) if k in ends else None, count)
        for k, image, size, count in zip(steps, images, sizes, frames, strict=True)
    ]
    return _render(model, works, plan, chosen)


def clip_size(model: ClipModel, image: Tensor, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of the clip that a key image [H, W, 3] becomes: `size` if that is given, else its own.

    Sides are multiples of the model's `side_multiple`: a `size` that is not so is refused, a picture's own is rounded
    down. A picture of more pixels than its family was made for is shrunk to as many, in the same proportions (as
    https://huggingface.co/Wan-AI/Wan2.1-I2V-14B-480P-Diffusers does it); a smaller one is never enlarged. A model that
    renders one size only does so with every picture, and one with buckets takes that of the picture. What is cut off
    for that is cut off on both sides alike.
    """
    multiple, (height, width) = model.side_multiple, image.shape[-3:-1]
    only = model.own_size or model.way.bucket(model.pipe, height, width)
    if size is not None:
        check_size(model.family, size, multiple, only)
        return size
    if only:
        return only
    shrink = min(1.0, math.sqrt(math.prod(model.family.area) / (height * width)))
    # A hair more, lest a product of roots falls short of the whole number that it is.
    fitting = tuple(int(side * shrink * (1 + 1e-9)) // multiple * multiple for side in (height, width))
    if not all(fitting):
        raise KSGenError(
            f"A key image of {width}x{height} pixels is too small for {model.family.name}. Give one of at least "
            f"{multiple}x{multiple}."
        )
    return fitting[0], fitting[1]


@dataclass(frozen=True)
class _Work:
    """A step and what its clip is made from: pictures [H, W, 3] of its size, and how many frames."""

    step: int
    image: Tensor
    last: Tensor | None
    frames: int


def encode_text_native(model: WanClipModel, text: str) -> Tensor:
    """A text -> [1, L, C] on the CPU, padded as for this model: the tensor of ComfyUI's CONDITIONING."""
    with torch.no_grad():
        return model.encode_texts([text]).float().cpu()


def _ends(
    model: ClipModel,
    images: Sequence[Tensor],
    plan: Plan,
    steps: Sequence[int],
    settings: RenderSettings,
    given: Mapping[int, Tensor],
) -> Mapping[int, Tensor]:
    """The pictures that clips end in, by step: none, unless that is wanted or the family cannot do without."""
    family = model.family
    if not settings.to_next and not family.needs_last_frame:
        return {}
    by_step = dict(zip(steps, images, strict=True))
    ends = {k: given.get(k, by_step.get(k + 1)) for k in steps}
    for k, end in ends.items():
        if end is None and family.needs_last_frame:
            raise KSGenError(
                f"{family.name} makes a clip between two pictures, and there is none for step {k + 1} to end in. Leave "
                "that step out, or choose a model that starts from one picture alone."
            )
        if end is None and k + 1 < len(plan.steps):
            raise KSGenError(
                f"Step {k + 1} is to end in the key image of the step after it, which is not there. Turn the last "
                "frame off: clips that start where the one before ended cannot also end in a key image."
            )
    return {k: end for k, end in ends.items() if end is not None}


def _fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The picture in that size; one that has it stays as it is, also off the 8-bit grid."""
    image = pixels.one_picture(image)
    return image if image.shape[:2] == size else pixels.fit(image, *size)


def _render(
    model: ClipModel, works: list[_Work], plan: Plan, chosen: Defaults
) -> Iterator[Update | StepClip | Fallback]:
    # The texts of the whole plan, so that the text encoders are done when the first clip begins.
    negative = [chosen.negative] if max(chosen.guidance, chosen.guidance_2 or 1) > 1 else []
    texts = [*(step.text for step in plan.steps), *negative]

    def tell(rung: str, text: str) -> Fallback:
        return Fallback("render", (works[done].step,), rung, text)

    done = 0
    kept = yield from with_ladder_once(model, lambda: model.encode(texts), tell)
    for done, work in enumerate(works):
        step = plan.steps[work.step]
        shot = Shot(
            image=work.image,
            last=work.last,
            frames=work.frames,
            updates=chosen.updates,
            guidance=chosen.guidance,
            guidance_2=chosen.guidance_2,
            fps=chosen.fps,
            seed=step.seed or 0,
            text=kept[step.text],
            negative=kept[negative[0]] if negative else {},
        )
        yield from with_ladder(model, partial(_clip, model, shot, work.step, done, len(works)), tell)


# As a decorator, and not around the body: that would leave gradients off in the caller's code between two events.
@torch.no_grad()
def _clip(model: ClipModel, shot: Shot, step: int, done: int, count: int) -> Iterator[Update | StepClip]:
    """One clip, after `done` of `count`."""
    model.colours(shot.image)  # before the sampler, in whose midst the VAE would take the backbone's place

    def update(state: State) -> Update:
        number, total = done * state.total + state.number, count * state.total
        return Update("render", (step,), number, total, model.preview(state, shot.image))

    clip = yield from relayed(model.make(shot), update)
    yield StepClip(step, clip)
