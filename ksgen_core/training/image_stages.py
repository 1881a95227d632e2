"""Train the parts of the key-step image model on Tabletop: VAE, encoders, Skill Transformer, backbone.

Legend: B batch, N image tokens of width C, L tokens per text, Z latent channels, h, w latent size, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..keysteps.draw import Condition
from ..keysteps.sdxl_diffusers import KeyStepModel
from ..pixels import from_uint8
from ..tabletop.skills import SKILLS
from .encoded import Encoded, bf16, digest
from .encoded_plans import EncodedPlans
from .judges import JUDGE_OUTPUTS
from .loop import Progress, Recipe, fit
from .pool import STEPS, Pool
from .skill_stage import train_skill_transformer

VAE = Recipe(iterations=9000, batch=6, rate=1.5e-3, ema=0.995, decay=0.0)
ENCODERS = Recipe(iterations=7000, batch=40, rate=1.2e-3, warm_up=200, decay=0.05)
TEXTS = Recipe(iterations=400, batch=32, rate=1e-3, warm_up=50, decay=0.05)
SKILL = Recipe(iterations=2000, batch=32, rate=8e-4, warm_up=150, decay=0.05, ema=0.99, clip=0.25)
BACKBONE = Recipe(iterations=3000, batch=32, rate=8e-4, warm_up=200, decay=0.01, ema=0.995)
ADAPTER = Recipe(iterations=14000, batch=32, rate=8e-4, warm_up=150, decay=0.01, ema=0.998)

ENCODER_OUTPUTS = (*JUDGE_OUTPUTS, len(STEPS))
"""What the image tokens must tell: facts, colours and shapes of all objects, and the step."""
THUMBNAIL, THUMBNAIL_WEIGHT = 16, 50.0
"""Side in pixels of the small copy of the picture; how much its squared error counts beside the sum of the facts."""


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels of [B, 3, H, W]: outlines count as much as areas."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction(got: Tensor, true: Tensor) -> Tensor:
    """L1, with edges for the outlines; squared error settles colours soon. [B, 3, H, W] each, -1..1."""
    outlines = sum(F.l1_loss(a, b) for a, b in zip(edges(got), edges(true), strict=True))
    return F.l1_loss(got, true) + 2 * F.mse_loss(got, true) + outlines


def train_vae(model: KeyStepModel, pool: Pool, run: Path, recipe: Recipe = VAE, crop: int = 64) -> Iterator[Progress]:
    """The VAE on crops (it is convolutional); then its latents are normalised inside its own 1x1 convolutions."""
    vae = model.pipe.vae.train()

    def losses_of(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        true = pool.crops(recipe.batch, crop, generator).to(model.device).movedim(-1, 1) * 2 - 1
        with bf16(model):
            posterior = vae.encode(true).latent_dist
            mean = posterior.mean
            noise = torch.randn(mean.shape, generator=generator).to(model.device)
            got = vae.decode(mean + 0.05 * mean.detach().std() * noise).sample
        return {"reconstruction": reconstruction(got.float(), true), "prior": 1e-5 * mean.float().square().mean()}

    yield from fit("vae", vae, losses_of, recipe, run)
    vae.eval()
    normalise_latents(model, from_uint8(pool.images[:: max(1, len(pool.images) // 400)]))


@torch.no_grad()
def normalise_latents(model: KeyStepModel, images: Tensor) -> None:
    """Fold mean and standard deviation of the latents into quant_conv and post_quant_conv: scaling_factor stays 1."""
    vae = model.pipe.vae
    latents = torch.cat([model.encode_latents(part) for part in images.split(25)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    vae.quant_conv.weight[:channels] /= std[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.bias[channels:] -= 2 * std.log()
    vae.post_quant_conv.bias += (vae.post_quant_conv.weight[:, :, 0, 0] * mean).sum(1)
    vae.post_quant_conv.weight *= std[None, :, None, None]


class _Listeners(nn.Module):
    """The text encoders and the throw-away heads that say what they must tell apart."""

    def __init__(self, model: KeyStepModel) -> None:
        super().__init__()
        width = model.skill_transformer.config.text_width
        self.texts = nn.ModuleList([model.pipe.text_encoder, model.pipe.text_encoder_2])
        self.step = nn.Linear(width, len(STEPS))
        self.goal = nn.Linear(width, len(SKILLS))


def train_texts(model: KeyStepModel, run: Path, recipe: Recipe = TEXTS) -> Iterator[Progress]:
    """The text encoders learn which step, or which skill, a sentence means; unseen skills are left out."""
    listeners = _Listeners(model).to(model.device).train().requires_grad_(True)
    step_texts = [
        (t, STEPS.index((s.action, s.obj, s.target)))
        for skill in SKILLS
        if not skill.unseen
        for s in skill.steps
        for t in s.texts
    ]
    goals = [(g, k) for k, skill in enumerate(SKILLS) if not skill.unseen for g in skill.goals]

    def losses_of(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        picked = [step_texts[k] for k in torch.randint(len(step_texts), (24,), generator=generator).tolist()]
        picked += [goals[k] for k in torch.randint(len(goals), (8,), generator=generator).tolist()]
        with bf16(model):
            tokens, mask, _ = model.encode_texts([text for text, _ in picked])
            mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            steps, aims = listeners.step(mean[:24]).float(), listeners.goal(mean[24:]).float()
        classes = torch.tensor([k for _, k in picked], device=model.device)
        words = F.cross_entropy(steps, classes[:24]) + F.cross_entropy(aims, classes[24:])
        return {"words": words}

    yield from fit("texts", listeners, losses_of, recipe, run)
    listeners.eval()


class _Readers(nn.Module):
    """What is trained in the encoder stage, and the throw-away heads that say what the tokens must hold."""

    def __init__(self, model: KeyStepModel) -> None:
        super().__init__()
        tokens, width = model.skill_transformer.config.tokens_per_image, model.skill_transformer.config.token_width
        self.image_encoder, self.resampler = model.image_encoder, model.resampler
        self.facts = nn.Linear(tokens * width, sum(ENCODER_OUTPUTS))
        self.thumbnail = nn.Linear(tokens * width, THUMBNAIL * THUMBNAIL * 3)
        inner = model.image_encoder.config.hidden_size
        self.look_at = nn.Parameter(torch.randn(len(ENCODER_OUTPUTS), inner) * 0.1)
        self.seen = nn.Parameter(torch.zeros(len(ENCODER_OUTPUTS), inner, max(ENCODER_OUTPUTS)))

    def read_states(self, states: Tensor) -> list[Tensor]:
        """One query per fact looks at the image encoder's states [B, M, E]: a short way for the gradient -> logits."""
        weights = (self.look_at @ states.transpose(1, 2) / states.shape[-1] ** 0.5).softmax(-1)
        logits = torch.einsum("bqe,qev->bqv", F.layer_norm(weights @ states, states.shape[-1:]), self.seen)
        return [logits[:, k, :v] for k, v in enumerate(ENCODER_OUTPUTS)]


def train_encoders(model: KeyStepModel, pool: Pool, run: Path, recipe: Recipe = ENCODERS) -> Iterator[Progress]:
    """Image encoder and resampler learn to tell states, colours, shapes and steps, and where things lie.

    No pretrained CLIP ships in any wheel, so ours is supervised by what the procedural world knows. A small copy of the
    picture, read off the tokens, makes them hold the layout too.
    """
    readers = _Readers(model).to(model.device)
    labels = [pool.facts, pool.colours, pool.shapes, pool.steps[:, None]]
    labels = torch.from_numpy(np.concatenate(labels, 1).astype(np.int64))
    is_step = torch.from_numpy(pool.index >= 0)
    for part in (model.image_encoder, model.resampler):
        part.train().requires_grad_(True)

    def losses_of(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(labels), (recipe.batch,), generator=generator)
        images = from_uint8(pool.images[rows.numpy()])
        images = torch.roll(images, tuple(torch.randint(-4, 5, (2,), generator=generator).tolist()), (1, 2))
        with bf16(model):
            states = model.image_states(images)
            tokens = model.resampler(states).flatten(1)
            logits = readers.facts(tokens).float().split(ENCODER_OUTPUTS, 1)
            small = readers.thumbnail(tokens).float()
        true, counts = labels[rows].to(model.device), is_step[rows].to(model.device)
        wanted = F.interpolate(images.movedim(-1, 1), (THUMBNAIL, THUMBNAIL), mode="area").flatten(1)
        losses = {"thumbnail": THUMBNAIL_WEIGHT * F.mse_loss(small, wanted.to(model.device))}
        for name, answers in (("tokens", logits), ("states", readers.read_states(states.float()))):
            facts = [F.cross_entropy(x, true[:, k]) for k, x in enumerate(answers[:-1])]
            action = (F.cross_entropy(answers[-1], true[:, -1], reduction="none") * counts).mean()
            losses[name] = torch.stack(facts).sum() + action
        return losses

    yield from fit("encoders", readers, losses_of, recipe, run)
    for part in (model.image_encoder, model.resampler):
        part.eval()
    with torch.no_grad():
        model.skill_transformer.empty_tokens.copy_(model.zero_image_tokens())


def train_skill(model: KeyStepModel, data: Encoded, run: Path, recipe: Recipe = SKILL) -> Iterator[Progress]:
    """The Skill Transformer on the pool's plans, by the code of `ksgen train skill-transformer`."""
    yield from train_skill_transformer(model.skill_transformer, EncodedPlans.from_pool(data), run, recipe)


def train_backbone(
    model: KeyStepModel, pool: Pool, data: Encoded, foreseen: Tensor | None, run: Path, recipe: Recipe | None = None
) -> Iterator[Progress]:
    """The UNet on latents, by the scheduler's own prediction type. In two parts:

    "backbone", without `foreseen`: text and reference alone; the image attention stays the nothing it begins as.
    "adapter", with the tokens that the Skill Transformer foresees [P, N, C]: everything, most image tokens being
    predictions, some the true ones, some those of the zero image. Conditions are dropped independently, so that every
    policy and guidance are trained.
    """
    name, recipe = ("backbone", recipe or BACKBONE) if foreseen is None else ("adapter", recipe or ADAPTER)
    unet = model.pipe.unet.train().requires_grad_(True)
    if foreseen is None:
        for key, parameter in unet.named_parameters():
            parameter.requires_grad_("_ip." not in key)
    scheduler = model.pipe.scheduler
    alphas = scheduler.alphas_cumprod.cpu()
    rows_of_steps = torch.from_numpy(np.flatnonzero(pool.index >= 1))
    instance, index = torch.from_numpy(pool.instance).long(), torch.from_numpy(pool.index).long()
    first = torch.tensor(data.first)
    text_of = torch.zeros(len(pool.images), dtype=torch.long)
    for row in rows_of_steps.tolist():
        text_of[row] = data.text_of[int(instance[row])][int(index[row])]

    def losses_of(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = rows_of_steps[torch.randint(len(rows_of_steps), (recipe.batch,), generator=generator)]
        chance = torch.rand(4, recipe.batch, generator=generator)
        clean = data.latents[rows].float()
        reference = data.latents[first[instance[rows]]].float() * (chance[0] > 0.15)[:, None, None, None]
        text = text_of[rows] * (chance[1] > 0.10)
        tokens = data.zero.expand(recipe.batch, -1, -1)
        if foreseen is not None:
            kinds = (chance[2] < 0.75)[:, None, None], (chance[3] < 0.30)[:, None, None]
            tokens = torch.where(kinds[0], foreseen[rows].float(), data.tokens[rows].float())
            tokens = torch.where(kinds[1], data.zero, tokens)
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(scheduler.config.num_train_timesteps, (recipe.batch,), generator=generator)
        a = alphas[times].sqrt()[:, None, None, None]
        s = (1 - alphas[times]).sqrt()[:, None, None, None]
        given = (data.text[text], data.pooled[text], tokens, reference)
        condition = Condition(*(part.to(model.device) for part in given))
        with bf16(model):
            got = model.predict((a * clean + s * noise).to(model.device), times.to(model.device), condition)
        return {"velocity": F.mse_loss(got.float(), (a * noise - s * clean).to(model.device))}

    seen = data.seen if foreseen is None else f"{data.seen} {digest(model.skill_transformer)}"
    yield from fit(name, unet, losses_of, recipe, run, seen=seen)
    unet.eval()
