"""Renders clips: conditions, then the sampler's loop over transformer and scheduler.

Legend: B clips rendered together, F frames, H, W pixels, Z latent channels, f, h, w latents, L tokens, C their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import pixels
from ..errors import KSGenError
from ..pipeline import StepClip, Update
from ..types import Clip, Plan, with_seeds
from .settings import RenderSettings

if TYPE_CHECKING:
    from .wan_diffusers import ClipModel


@dataclass(frozen=True)
class Condition:
    """What steers the backbone: text [B, L, C], the same of no text for guidance or None, first [B, 4 + Z, f, h, w]."""

    text: Tensor
    empty: Tensor | None
    first: Tensor

    def __getitem__(self, rows: slice) -> Condition:
        parts = ((f.name, getattr(self, f.name)) for f in fields(self))
        return Condition(**{name: None if part is None else part[rows] for name, part in parts})


@dataclass(frozen=True)
class State:
    """Where the sampler is: its latents, and the clean ones that it foresees now, both [B, Z, f, h, w]."""

    latents: Tensor
    foreseen: Tensor


def render_clip(
    model: ClipModel, image: Tensor, plan: Plan, step: int, settings: RenderSettings | None = None
) -> Iterator[Update | StepClip]:
    """Render the clip of step `step` (number from 0) from its key image [H, W, 3], its first frame.

    Yields an `Update` per sampler update and then the `StepClip` (float32 0..1 on the CPU, of the picture's size).
    A step without a seed counts its from 0. Raises `KSGenError` if the picture's size does not fit.
    """
    return render_clips(model, [image], plan, [step], settings)


def render_clips(
    model: ClipModel,
    images: Sequence[Tensor],
    plan: Plan,
    steps: Sequence[int],
    settings: RenderSettings | None = None,
) -> Iterator[Update | StepClip]:
    """Render the clips of `steps` (numbers from 0), which do not depend on each other; `images` has one for each.

    As `render_clip`, but `settings.batch` clips at once; the events of a batch's clips come together.
    """
    settings = settings or RenderSettings()
    if wrong := [k for k in steps if not 0 <= k < len(plan.steps)]:
        raise ValueError(f"the plan has steps 0..{len(plan.steps) - 1}, got {wrong}")
    if len(images) != len(steps):
        raise ValueError(f"every step needs its key image, got {len(images)} for {len(steps)} steps")
    for image in images:
        _check_size(model, image)
    return _render(model, [pixels.one_picture(image) for image in images], with_seeds(plan, 0), list(steps), settings)


def encode_text_native(model: ClipModel, text: str) -> Tensor:
    """A text -> [1, L, C] on the CPU, padded as for this model: the tensor of ComfyUI's CONDITIONING."""
    with torch.no_grad():
        return model.encode_texts([text]).float().cpu()


def _check_size(model: ClipModel, image: Tensor) -> None:
    height, width = image.shape[-3], image.shape[-2]
    multiple = model.side_multiple
    if height % multiple or width % multiple:
        fitting = [max(1, round(side / multiple)) * multiple for side in (width, height)]
        raise KSGenError(
            f"The sides of a key image must be multiples of {multiple} pixels to become a clip, got {width}x{height}. "
            f"Resize it, e.g. to {fitting[0]}x{fitting[1]}."
        )


# As a decorator, and not around the body: that would leave gradients off in the caller's code between two events.
@torch.no_grad()
def _render(
    model: ClipModel, images: list[Tensor], plan: Plan, steps: list[int], settings: RenderSettings
) -> Iterator[Update | StepClip]:
    batches = [slice(i, i + settings.batch) for i in range(0, len(steps), settings.batch)]
    total = len(batches) * settings.updates
    for number, rows in enumerate(batches):
        batch, firsts = steps[rows], torch.stack(images[rows])
        condition = conditions(model, firsts, [plan.steps[k].text for k in batch], settings)
        seeds = [plan.steps[k].seed for k in batch]
        colours = pixels.latent_colours(condition.first[0, -model.latent_channels :, 0], firsts[0])
        latents = None
        for update, state in enumerate(sample(model, condition, seeds, settings), 1):
            latents = state.latents
            rough = pixels.preview(state.foreseen[:, :, -1], colours, firsts.shape[1])
            yield Update("render", tuple(batch), number * settings.updates + update, total, rough)
        for k, latent in zip(batch, latents, strict=True):
            film = model.decode_latents(latent[None])[0].cpu()
            yield StepClip(k, Clip.of(film, settings.fps))


@torch.no_grad()
def conditions(model: ClipModel, images: Tensor, texts: list[str], settings: RenderSettings) -> Condition:
    """The condition of a batch: first frames [B, H, W, 3] and their texts."""
    empty = None if settings.guidance == 1 else model.encode_texts([""]).expand(len(texts), -1, -1)
    return Condition(model.encode_texts(texts), empty, model.condition(images.to(model.device), settings.frames))


@torch.no_grad()
def sample(model: ClipModel, condition: Condition, seeds: Sequence[int], settings: RenderSettings) -> Iterator[State]:
    """From noise to latents: yields the `State` after every update.

    The noise of each clip comes from its own CPU generator, so it is the same in any batch and on any device
    (HOUSE.md, example 10); it is also what ComfyUI's samplers draw for this seed.
    """
    # One of its own: a scheduler counts its updates, and the model may be in use elsewhere.
    scheduler = type(model.pipe.scheduler).from_config(model.pipe.scheduler.config)
    scheduler.set_timesteps(settings.updates, device=model.device)
    shape = (model.latent_channels, *condition.first.shape[2:])
    noise = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    latents = torch.stack(noise).to(model.device)
    sigmas = scheduler.sigmas.tolist()
    for number, t in enumerate(scheduler.timesteps):
        transformer = _transformer_at(model, float(t))
        velocity = model.predict(latents, t, condition.text, condition.first, transformer)
        if condition.empty is not None:
            without = model.predict(latents, t, condition.empty, condition.first, transformer)
            velocity = without + settings.guidance * (velocity - without)
        foreseen = latents - sigmas[number] * velocity
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
        yield State(latents, foreseen)


def _transformer_at(model: ClipModel, timestep: float) -> torch.nn.Module:
    """Wan 2.2 has one transformer for much noise and one for little; the pipeline's config says the border."""
    ratio = model.pipe.config.boundary_ratio
    if ratio is None or timestep >= ratio * model.pipe.scheduler.config.num_train_timesteps:
        return model.pipe.transformer
    return model.pipe.transformer_2
