"""Draws key images: conditions by policy, then the sampler's loop over backbone and scheduler.

Legend: B key images drawn together, T steps of the plan, H, W pixels, h, w latents, Z latent channels, L tokens per
text, C their width, P pooled width, N image tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import pixels
from ..errors import KSGenError
from ..pipeline import KeyImage, Update
from ..types import Plan, with_seeds
from .policies import DrawSettings

if TYPE_CHECKING:
    from .sdxl_diffusers import KeyStepModel


@dataclass(frozen=True)
class Condition:
    """What steers the backbone, for a batch of B pictures.

    text [B, L, C], pooled [B, P], image_tokens [B, N, C] or None without an adapter, reference [B, Z, h, w]: the
    latents beside the noise, None means none (zeros in a backbone that has room for them).
    """

    text: Tensor
    pooled: Tensor
    image_tokens: Tensor | None = None
    reference: Tensor | None = None

    def __getitem__(self, rows: Sequence[int]) -> Condition:
        parts: list[Any] = [None if part is None else part[list(rows)] for part in self._parts()]
        return Condition(*parts)

    def then(self, other: Condition) -> Condition:
        """Both batches, one after the other."""
        pairs = zip(self._parts(), other._parts(), strict=True)
        parts: list[Any] = [None if one is None else torch.cat([one, two]) for one, two in pairs]
        return Condition(*parts)

    def _parts(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class State:
    """Where the sampler is: its latents, and the clean ones that it foresees now, both [B, Z, h, w]."""

    latents: Tensor
    foreseen: Tensor


def draw_key_steps(
    model: KeyStepModel, image: Tensor, plan: Plan, steps: Sequence[int], settings: DrawSettings | None = None
) -> Iterator[Update | KeyImage]:
    """Draw the key images of `steps` (numbers from 0), given the initial picture [H, W, 3] and the whole plan.

    Yields an `Update` per sampler update and a `KeyImage` (float32 0..1 on the CPU, of the model's size) per finished
    step. Step 0 is the initial picture itself. Steps without a seed count theirs from 0. Raises `KSGenError` if the
    model lacks what the policy needs, before any work is done.
    """
    settings = settings or DrawSettings()
    if wrong := [k for k in steps if not 0 <= k < len(plan.steps)]:
        raise ValueError(f"the plan has steps 0..{len(plan.steps) - 1}, got {wrong}")
    check_policy(model, settings.policy)
    return _draw(model, pixels.fit(image, *model.size), with_seeds(plan, 0), sorted(set(steps)), settings)


def check_policy(model: KeyStepModel, policy: str) -> None:
    """Raise `KSGenError` if this model cannot draw by this policy, saying what is missing."""
    if policy == "last_frame":
        raise KSGenError(
            "By the policy 'last_frame' no key image is drawn: each is the last frame of the clip before it. "
            "Render the clips as a chain, or choose another policy."
        )
    if policy == "skill_transformer" and (model.skill_transformer is None or model.resampler is None):
        raise KSGenError(
            f"{model.folder} has no Skill Transformer with an IP-Adapter-Plus to use it. Put "
            "skill_transformer.safetensors, ip_adapter/ and image_encoder/ there, or choose the policy 'text_only'."
        )
    if policy == "reference" and not model.takes_reference:
        raise KSGenError(
            f"The policy 'reference' needs a UNet with room for the initial picture: {2 * model.latent_channels} input "
            f"channels, that in {model.folder} has {model.pipe.unet.config.in_channels}. Choose another policy."
        )


@torch.no_grad()
def conditions(model: KeyStepModel, image: Tensor, plan: Plan, last: int, policy: str) -> tuple[Condition, Condition]:
    """The conditions of steps 0..last, and as many empty ones for guidance, for the fitted picture [H, W, 3].

    All texts of the plan are read, whatever `last` is, so that a step's condition never depends on what else is drawn.
    """
    count = last + 1
    text, mask, pooled = model.encode_texts([*(step.text for step in plan.steps), ""])
    tokens = nothing = reference = None
    if model.resampler is not None:
        nothing = model.zero_image_tokens().expand(count, -1, -1)
        tokens = nothing
    if model.takes_reference and policy != "text_only":
        reference = model.encode_latents(image[None]).expand(count, -1, -1, -1)
    if policy == "skill_transformer":
        first = model.encode_images(image[None])
        tokens = model.skill_transformer.roll_out(first, text[None, :-1], mask[None, :-1], count)[0]
    empty = Condition(text[-1:].expand(count, -1, -1), pooled[-1:].expand(count, -1), nothing, reference)
    return Condition(text[:count], pooled[:count], tokens, reference), empty


# As a decorator, and not around the body: that would leave gradients off in the caller's code between two events.
@torch.no_grad()
def _draw(
    model: KeyStepModel, image: Tensor, plan: Plan, steps: list[int], settings: DrawSettings
) -> Iterator[Update | KeyImage]:
    drawn = []
    for k in steps:
        if k == 0 or settings.policy == "initial":
            yield KeyImage(k, image.clone())
        else:
            drawn.append(k)
    if not drawn:
        return
    given, empty = conditions(model, image, plan, max(drawn), settings.policy)
    colours = pixels.latent_colours(model.encode_latents(image[None])[0], image)
    batches = [drawn[i : i + settings.batch] for i in range(0, len(drawn), settings.batch)]
    for number, batch in enumerate(batches):
        condition = given[batch] if settings.guidance == 1 else empty[batch].then(given[batch])
        seeds = [plan.steps[k].seed for k in batch]
        for update, state in enumerate(sample(model, condition, seeds, settings), 1):
            done, total = number * settings.updates + update, len(batches) * settings.updates
            yield Update("draw", tuple(batch), done, total, pixels.preview(state.foreseen, colours, image.shape[0]))
        for k, latent in zip(batch, state.latents, strict=True):
            yield KeyImage(k, pixels.on_8_bit_grid(model.decode_latents(latent[None])[0]))


@torch.no_grad()
def sample(model: KeyStepModel, condition: Condition, seeds: Sequence[int], settings: DrawSettings) -> Iterator[State]:
    """From noise to latents: yields the `State` after every update.

    With guidance, `condition` holds the B empty conditions and then the B given ones. The noise of each picture comes
    from its own CPU generator, so it is the same in any batch and on any device (HOUSE.md, example 10).
    """
    # One of its own: a scheduler counts its updates, and the model may be in use elsewhere.
    scheduler = type(model.pipe.scheduler).from_config(model.pipe.scheduler.config)
    scheduler.set_timesteps(settings.updates, device=model.device)
    chances = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    height, width = (side // model.pipe.vae_scale_factor for side in model.size)
    shape = (model.latent_channels, height, width)
    noise = torch.stack([torch.randn(shape, generator=chance) for chance in chances])
    latents = noise.to(model.device, model.dtype) * scheduler.init_noise_sigma
    # Stochastic schedulers draw more noise, from the same generators.
    takes_chance = "generator" in inspect.signature(scheduler.step).parameters
    more = {"generator": chances} if takes_chance else {}
    for t in scheduler.timesteps:
        pair = latents if settings.guidance == 1 else torch.cat([latents, latents])
        prediction = model.predict(scheduler.scale_model_input(pair, t), t, condition)
        if settings.guidance != 1:
            without, given = prediction.chunk(2)
            prediction = without + settings.guidance * (given - without)
        result = scheduler.step(prediction, t, latents, **more)
        latents = result.prev_sample.to(model.dtype)
        foreseen = getattr(result, "pred_original_sample", None)
        yield State(latents, latents if foreseen is None else foreseen)
