"""Train the parts of the clip model on Tabletop: the video VAE, then transformer and text encoder on its latents.

Legend: B batch, F frames, Z latent channels, f, h, w latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy, deepcopy
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clips.wan_diffusers import WanClipModel, fold_latent_statistics
from ..pixels import from_uint8
from ..tabletop.instances import make
from .encoded import bf16, digest, kept
from .image_stages import reconstruction
from .loop import Progress, Recipe, fit
from .pool import TRAIN_INSTANCES, Pool

CLIP_VAE = Recipe(iterations=16000, batch=6, rate=1.5e-3, ema=0.995, decay=0.0)
CLIP_DECODER = Recipe(iterations=4000, batch=6, rate=8e-4, ema=0.995, decay=0.0)
CLIPS = Recipe(iterations=9000, batch=8, rate=6e-4, warm_up=200, ema=0.998)
FILMS = 3
"""Pieces of films in a batch; the recipe's own `batch` counts single frames."""
NOISE = 0.05
"""How much noise the decoder learns to bear, in deviations of the latents: a transformer's latents are never exact."""
SHARD = 200
"""Instances whose clips are encoded into one file."""
SHARDS = 5
SHIFT = 3.0
"""Of the noise levels trained on: sigma = s u / (1 + (s - 1) u) for u uniform (Esser et al., arXiv 2403.03206, eq. 23).

Less than the sampler's own, so that the late updates are trained as well."""


def train_clip_vae(
    model: WanClipModel, pool: Pool, run: Path, recipe: Recipe = CLIP_VAE, crop: int = 64
) -> Iterator[Progress]:
    """Whole films, and single frames every third time: what is not trained to its full length drifts away after it.

    Crops only: the VAE is convolutional but for one layer.

    At the end its latents get the mean and deviation that ComfyUI takes for granted for Wan 2.1.
    """
    vae = model.pipe.vae.train()

    def losses_of(iteration: int, generator: torch.Generator) -> dict[str, Tensor]:
        true = _pictures_or_films(iteration, pool, recipe.batch, crop, generator).to(model.device)
        with bf16(model):
            mean = vae.encode(true).latent_dist.mode()
            noise = torch.randn(mean.shape, generator=generator).to(model.device)
            got = vae.decode(mean + NOISE * mean.detach().std() * noise).sample
        return {"reconstruction": _reconstruction(got, true), "prior": 1e-5 * mean.float().square().mean()}

    yield from fit("clip_vae", vae, losses_of, recipe, run)
    vae.eval()
    with torch.no_grad():
        films = [from_uint8(make("train", seed).film(0))[None] for seed in range(24)]
        latents = torch.cat(
            [vae.encode(film.to(model.device).movedim(-1, 1) * 2 - 1).latent_dist.mode() for film in films]
        )
    fold_latent_statistics(vae, latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4)))


def train_clip_decoder(
    model: WanClipModel, pool: Pool, run: Path, recipe: Recipe = CLIP_DECODER, crop: int = 64
) -> Iterator[Progress]:
    """The video VAE's decoder alone, further: latents stay as they are, and so does all that is trained on them."""
    vae = model.pipe.vae.requires_grad_(False).eval()
    for part in (vae.decoder, vae.post_quant_conv):
        part.train().requires_grad_(True)

    def losses_of(iteration: int, generator: torch.Generator) -> dict[str, Tensor]:
        true = _pictures_or_films(iteration, pool, recipe.batch, crop, generator).to(model.device)
        with bf16(model):
            with torch.no_grad():
                latents = vae.encode(true).latent_dist.mode()
            noise = torch.randn(latents.shape, generator=generator).to(model.device)
            got = vae.decode(latents + NOISE * vae_deviation * noise).sample
        return {"reconstruction": _reconstruction(got, true)}

    vae_deviation = torch.tensor(vae.config.latents_std, device=model.device)[:, None, None, None]
    yield from fit("clip_decoder", vae, losses_of, recipe, run, seen=digest(vae.encoder, vae.quant_conv))
    vae.eval()


def _pictures_or_films(iteration: int, pool: Pool, batch: int, crop: int, generator: torch.Generator) -> Tensor:
    """Two times of three pieces of films, else of single pictures: [B, 3, F, c, c] in -1..1."""
    if iteration % 3:
        seed = int(torch.randint(1 << 31, (), generator=generator))
        pieces = _film_crops(seed, FILMS, crop // 2)
    else:
        pieces = pool.crops(batch, crop, generator)[:, None]
    return pieces.movedim(-1, 1) * 2 - 1


def _reconstruction(got: Tensor, true: Tensor) -> Tensor:
    """`reconstruction` of all frames of [B, 3, F, H, W], -1..1."""
    return reconstruction(*(x.float().movedim(2, 1).flatten(0, 1) for x in (got, true)))


def _film_crops(seed: int, count: int, crop: int) -> Tensor:
    """Pieces [count, F, crop, crop, 3] of films of the training split: the liveliest of three random places each."""
    random = Random(seed)
    pieces = []
    for _ in range(count):
        instance = make("train", random.randrange(TRAIN_INSTANCES))
        film = instance.film(random.randrange(len(instance.run.steps)))
        most = film.shape[1] - crop + 1
        corners = [(random.randrange(0, most, 8), random.randrange(0, most, 8)) for _ in range(3)]
        places = [film[:, y : y + crop, x : x + crop] for y, x in corners]
        pieces.append(max(places, key=lambda piece: np.ptp(piece.astype(np.int16), 0).sum()))
    return from_uint8(np.stack(pieces))


@torch.no_grad()
def encode_clips(model: WanClipModel, folder: Path, shard: int, size: int = SHARD) -> dict:
    """The clips of one shard's instances, encoded once by this VAE: {latents and firsts [B, Z, f, h, w], texts}."""

    def make_shard() -> dict:
        latents, firsts, texts = [], [], []
        # A copy in half precision: twice as fast on processors, off by 0.004 where latents have a deviation of 1.
        half = WanClipModel(copy(model.pipe))
        half.pipe.vae = deepcopy(model.pipe.vae).to(torch.bfloat16)
        for seed in range(shard * size, (shard + 1) * size):
            instance = make("train", seed)
            for k in range(len(instance.run.steps)):
                film = from_uint8(instance.film(k))[None]
                grey = torch.full_like(film, 0.5)
                grey[:, 0] = film[:, 0]
                both = half.encode_frames(torch.cat([film, grey])).half().cpu()
                latents.append(both[:1])
                firsts.append(both[1:])
                texts.append(list(instance.run.steps[k].texts))
        return {"latents": torch.cat(latents), "firsts": torch.cat(firsts), "texts": texts}

    return kept(folder / digest(model.pipe.vae) / f"shard-{size}-{shard:03d}.pt", make_shard)


def train_clips(
    model: WanClipModel, run: Path, recipe: Recipe = CLIPS, shards: int = SHARDS, shard_size: int = SHARD
) -> Iterator[Progress]:
    """Flow matching in latents, given first frame and text; the text encoder learns along."""
    data = [encode_clips(model, run / "clips", k, shard_size) for k in range(shards)]
    latents, firsts = (torch.cat([part[name] for part in data]) for name in ("latents", "firsts"))
    texts = [t for part in data for t in part["texts"]]
    both = nn.ModuleList([model.pipe.transformer, model.pipe.text_encoder]).train().requires_grad_(True)

    def losses_of(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(latents), (recipe.batch,), generator=generator).tolist()
        clean, first = latents[rows].float(), firsts[rows].float()
        pick = torch.randint(0, 1 << 30, (recipe.batch,), generator=generator).tolist()
        chosen = [texts[r][n % len(texts[r])] for r, n in zip(rows, pick, strict=True)]
        dropped = (torch.rand(recipe.batch, generator=generator) < 0.08).tolist()
        chosen = ["" if gone else text for text, gone in zip(chosen, dropped, strict=True)]
        u = torch.rand(recipe.batch, generator=generator)
        sigma = (SHIFT * u / (1 + (SHIFT - 1) * u))[:, None, None, None, None]
        noise = torch.randn(clean.shape, generator=generator)
        noisy, times, first, goal = (
            t.to(model.device)
            for t in ((1 - sigma) * clean + sigma * noise, sigma.flatten() * 1000, first, noise - clean)
        )
        with bf16(model):
            got = model.predict(noisy, times, model.encode_texts(chosen), model.with_mask(first))
        return {"velocity": F.mse_loss(got.float(), goal)}

    yield from fit("clips", both, losses_of, recipe, run, seen=digest(model.pipe.vae))
    both.eval()
