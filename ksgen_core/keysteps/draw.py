"""Draws key images: conditions by policy, then the sampler's loop over backbone and scheduler.

Legend: B key images drawn together, T steps of the plan, H, W pixels, h, w latents, Z latent channels, L tokens per
text, C their width, P pooled width, N image tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import pixels
from ..errors import KSGenError
from ..ladder_diffusers import in_halves, with_ladder_once
from ..pipeline import Fallback, KeyImage, Update
from ..sampling_diffusers import State, foreseen
from ..types import KeyStep, Plan, with_seeds
from .policies import DrawSettings, resolve_policy

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


def draw_key_steps(
    model: KeyStepModel | Any,
    image: Tensor,
    plan: Plan,
    steps: Sequence[int],
    settings: DrawSettings | None = None,
    made: Mapping[int, Tensor] | None = None,
) -> Iterator[Update | KeyImage | Fallback]:
    """Draw the key images of `steps` (numbers from 0), given the initial picture [H, W, 3] and the whole plan.

    Yields an `Update` per sampler update and a `KeyImage` (float32 0..1 on the CPU, of the wanted size) per finished
    step. Step 0 is the initial picture itself. Steps without a seed count theirs from 0. `made` are key images that
    are there already, for models that look at them; one with a `draw` of its own draws by itself. Raises `KSGenError`
    if the model lacks what the policy needs, before any work is done.
    """
    settings = settings or DrawSettings()
    if wrong := [k for k in steps if not 0 <= k < len(plan.steps)]:
        raise ValueError(f"the plan has steps 0..{len(plan.steps) - 1}, got {wrong}")
    if hasattr(model, "draw"):
        return model.draw(image, plan, steps, settings, made)
    settings = complete(model, settings)
    check_policy(model, settings.policy)
    return _draw(model, pixels.fit(image, *settings.size), with_seeds(plan, 0), sorted(set(steps)), settings)


def complete(model: KeyStepModel, settings: DrawSettings) -> DrawSettings:
    """The settings with nothing left open: the folder's own values, else the family's, and the policy for "auto"."""
    settings = settings.filled(model.defaults, model.backbone.defaults, {"size": model.size})
    factor = model.pipe.vae_scale_factor
    if any(side % factor for side in settings.size):
        raise KSGenError(
            f"Key images of {model.folder} have sides that are multiples of {factor}, got {settings.size}."
        )
    return replace(settings, policy=resolve_policy(model, settings.policy))


def check_policy(model: KeyStepModel, policy: str) -> None:
    """Raise `KSGenError` if this model cannot draw by this policy, saying what is missing."""
    if policy == "last_frame":
        raise KSGenError(
            "By the policy 'last_frame' no key image is drawn: each is the last frame of the clip before it. "
            "Render the clips as a chain, or choose another policy."
        )
    if policy == "edit_chain":
        raise KSGenError(
            f"The policy 'edit_chain' needs an image edit model (Qwen-Image-Edit-Plus, Flux Kontext or Flux.2 Klein); "
            f"{model.folder} holds {model.backbone.name}. Choose a folder of such a model, or the policy 'auto'."
        )
    if policy == "skill_transformer" and (model.skill_transformer is None or model.resampler is None):
        raise KSGenError(
            f"{model.folder} has no Skill Transformer with an IP-Adapter-Plus to use it. Put "
            "skill_transformer.safetensors, ip_adapter/ and image_encoder/ there, or choose the policy 'text_only'."
        )
    if policy == "image_prompt" and model.resampler is None:
        raise KSGenError(
            f"{model.folder} has no IP-Adapter-Plus to show it a picture with. Put ip_adapter/ and image_encoder/ "
            "there, or choose the policy 'text_only'."
        )
    if policy == "reference" and not model.takes_reference:
        raise KSGenError(
            f"The policy 'reference' needs a UNet with room for the initial picture: {2 * model.latent_channels} input "
            f"channels, that in {model.folder} has {model.pipe.unet.config.in_channels}. Choose another policy."
        )


def prompt(step: KeyStep) -> str:
    """What the backbone is told of a step: what is done and, if the plan says it, the scene at its start.

    A key image shows a step's beginning, so the state before it is what is seen (SCHEMA's state descriptions).
    """
    return step.text if not step.before else f"{step.text.rstrip(' .')}. {step.before}"


@torch.no_grad()
def conditions(
    model: KeyStepModel, image: Tensor, plan: Plan, last: int, policy: str, negative: str = ""
) -> tuple[Condition, Condition]:
    """The conditions of steps 0..last, and as many empty ones for guidance, for the fitted picture [H, W, 3].

    All texts of the plan are read, whatever `last` is, so that a step's condition never depends on what else is drawn.
    """
    count = last + 1
    # The Skill Transformer, and the backbone that was trained with it, know the bare texts.
    texts = [step.text if policy == "skill_transformer" else prompt(step) for step in plan.steps]
    text, mask, pooled = model.encode_texts([*texts, negative])
    tokens = nothing = reference = None
    if model.resampler is not None:
        nothing = model.zero_image_tokens().expand(count, -1, -1)
        tokens = nothing
    if model.takes_reference and policy != "text_only":
        reference = model.encode_reference(image[None]).expand(count, -1, -1, -1)
    if policy == "image_prompt":  # beside the reference where there is room, as the Skill Transformer's tokens are
        tokens = model.encode_images(image[None]).expand(count, -1, -1)
    if policy == "skill_transformer":
        first = model.encode_images(image[None])
        tokens = model.skill_transformer.roll_out(first, text[None, :-1], mask[None, :-1], count)[0]
    # Some backbones were trained with zeros for no text, SDXL's own among them; diffusers notes it so.
    none, none_pooled = text[-1:], pooled[-1:]
    if not negative and model.pipe.config.force_zeros_for_empty_prompt:
        none, none_pooled = torch.zeros_like(none), torch.zeros_like(none_pooled)
    empty = Condition(none.expand(count, -1, -1), none_pooled.expand(count, -1), nothing, reference)
    return Condition(text[:count], pooled[:count], tokens, reference), empty


def _draw(
    model: KeyStepModel, image: Tensor, plan: Plan, steps: list[int], settings: DrawSettings
) -> Iterator[Update | KeyImage | Fallback]:
    drawn = []
    for k in steps:
        if k == 0 or settings.policy == "initial":
            yield KeyImage(k, image.clone())
        else:
            drawn.append(k)
    if not drawn:
        return

    def tell(rung: str, text: str) -> Fallback:
        return Fallback("draw", tuple(drawn), rung, text)

    prepare = partial(_prepared, model, image, plan, max(drawn), settings)
    given, empty, colours = yield from with_ladder_once(model, prepare, tell)
    at_once = settings.batch or len(drawn)
    batches = [drawn[i : i + at_once] for i in range(0, len(drawn), at_once)]
    before = 0

    def draw(batch: Sequence[int]) -> Iterator[Update | KeyImage | Fallback]:
        nonlocal before
        for event in draw_batch(model, batch, plan, given, empty, settings):
            if isinstance(event, State):
                height = pixels.preview_height(event.latents.shape[2], image.shape[0])
                rough = pixels.preview(event.foreseen, colours, height)
                done, total = before * event.total + event.number, len(batches) * event.total
                event = Update("draw", tuple(batch), done, total, rough)
            yield event

    for number, batch in enumerate(batches):
        before = number
        yield from in_halves(model, batch, draw, tell)


@torch.no_grad()
def _prepared(
    model: KeyStepModel, image: Tensor, plan: Plan, last: int, settings: DrawSettings
) -> tuple[Condition, Condition, Tensor]:
    """What does not change from picture to picture: `conditions`, and the colours of latents for previews."""
    given, empty = conditions(model, image, plan, last, settings.policy, settings.negative)
    return given, empty, pixels.latent_colours(model.encode_latents(image[None])[0], image)


# As a decorator, and not around the body: that would leave gradients off in the caller's code between two events.
@torch.no_grad()
def draw_batch(
    model: KeyStepModel, batch: Sequence[int], plan: Plan, given: Condition, empty: Condition, settings: DrawSettings
) -> Iterator[State | KeyImage]:
    """The key images of the steps `batch`, drawn together: a `State` per update, then a `KeyImage` per step.

    `given` and `empty` have a row for every step of the plan, and every step of `plan` a seed. Nothing is kept between
    calls: what failed for want of memory is drawn again with fewer steps.
    """
    condition = given[batch] if settings.guidance == 1 else empty[batch].then(given[batch])
    latents: Any = ()
    for state in sample(model, condition, [plan.steps[k].seed for k in batch], settings):
        latents = state.latents
        yield state
    for k, latent in zip(batch, latents, strict=True):
        yield KeyImage(k, pixels.on_8_bit_grid(model.decode_latents(latent[None])[0]))


@torch.no_grad()
def sample(
    model: KeyStepModel, condition: Condition, seeds: Sequence[int | None], settings: DrawSettings
) -> Iterator[State]:
    """From noise to latents [B, Z, h, w]: yields the `State` after every update. The settings have nothing left open.

    With guidance, `condition` holds the B empty conditions and then the B given ones. The noise of each picture comes
    from its own CPU generator, so it is the same in any batch and on any device (HOUSE.md, example 10).
    """
    # One of its own: a scheduler counts its updates, and the model may be in use elsewhere.
    scheduler = type(model.pipe.scheduler).from_config(model.pipe.scheduler.config)
    scheduler.set_timesteps(settings.updates, device=model.device)
    chances = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    height, width = (side // model.pipe.vae_scale_factor for side in settings.size)
    shape = (model.latent_channels, height, width)
    noise = torch.stack([torch.randn(shape, generator=chance) for chance in chances])
    latents = noise.to(model.device, model.dtype) * scheduler.init_noise_sigma
    # Stochastic schedulers draw more noise, from the same generators.
    takes_chance = "generator" in inspect.signature(scheduler.step).parameters
    more = {"generator": chances} if takes_chance else {}
    total = len(scheduler.timesteps)  # not the wanted number where an update has two halves (Heun)
    for number, t in enumerate(scheduler.timesteps, 1):
        pair = latents if settings.guidance == 1 else torch.cat([latents, latents])
        prediction = model.predict(scheduler.scale_model_input(pair, t), t, condition)
        if settings.guidance != 1:
            without, given = prediction.chunk(2)
            prediction = without + settings.guidance * (given - without)
        result = scheduler.step(prediction, t, latents, **more)
        clean = foreseen(scheduler, prediction, latents, result)
        latents = result.prev_sample.to(model.dtype)
        yield State(number, total, latents, latents if clean is None else clean)
