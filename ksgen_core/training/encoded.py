"""Tabletop seen through frozen models: encoded once, kept on disk, read by the stages that train on it.

Legend: P pictures of the pool, N image tokens of width C, U texts, L tokens per text, Z latent channels, h, w latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints import write_atomically
from ..clips.wan_diffusers import WanClipModel
from ..keysteps.sdxl_diffusers import KeyStepModel
from ..pixels import from_uint8
from .pool import Pool


def bf16(model: KeyStepModel | WanClipModel) -> torch.autocast:
    """Half precision where the model is; weights and losses stay float32."""
    return torch.autocast(model.device.type, torch.bfloat16)


def digest(*models: nn.Module) -> str:
    """Twelve hexadecimal digits that stand for these models' weights."""
    found = hashlib.sha256()
    for model in models:
        for key, value in sorted(model.state_dict().items()):
            found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, from `path` if it is there. The path must name all that it depends on."""
    if not path.exists():
        made = make()
        write_atomically(path, lambda temporary: torch.save(made, temporary))
    return torch.load(path, weights_only=True)


@dataclass(frozen=True)
class Encoded:
    """The pool seen through the frozen encoders.

    latents [P, Z, h, w] and tokens [P, N, C] of the pool's pictures; text [U, L, C], mask [U, L], pooled [U, D] of all
    texts that occur (number 0 is the empty text); `text_of[i][k]` is the number of instance i's step k; `first[i]` is
    the row of instance i's initial picture, its key images follow; zero [N, C] are the tokens of the zero image;
    `seen` is the digest of all these encoders.
    """

    latents: Tensor
    tokens: Tensor
    text: Tensor
    mask: Tensor
    pooled: Tensor
    text_of: list[list[int]]
    first: list[int]
    zero: Tensor
    seen: str


def _encoded(
    model: KeyStepModel, pool: Pool, stem: Path, parts: tuple[str, ...], encode: Callable[[Tensor], Tensor]
) -> Tensor:
    """What `encode` makes of the pool's pictures, kept under the digest of the `parts` that it uses."""

    def make() -> Tensor:
        pieces = []
        for start in range(0, len(pool.images), 64):
            with bf16(model):
                pieces.append(encode(from_uint8(pool.images[start : start + 64])).half().cpu())
        return torch.cat(pieces)

    weights = digest(*(model.parts()[part] for part in parts))
    return kept(stem.with_name(f"{stem.name}-{len(pool.images)}-{weights}.pt"), make)


@torch.no_grad()
def encode_pool(model: KeyStepModel, pool: Pool, folder: Path, *, with_tokens: bool = True) -> Encoded:
    """Encode every picture of the pool once; what `folder` has by these weights is read.

    Without tokens: latents alone.
    """
    words = [""] + sorted({t for texts in pool.texts for t in texts})
    number = {t: k for k, t in enumerate(words)}
    text, mask, pooled = (t.cpu() for t in model.encode_texts(words))
    latents = _encoded(model, pool, folder / "latents", ("vae",), model.encode_latents)
    tokens = latents.new_zeros(0)
    if with_tokens:
        tokens = _encoded(model, pool, folder / "tokens", ("image_encoder", "resampler"), model.encode_images)
    first = np.flatnonzero(pool.index == 0).tolist()
    text_of = [[number[t] for t in texts] for texts in pool.texts]
    parts = ["vae", "text_encoder", "text_encoder_2", *(["image_encoder", "resampler"] if with_tokens else [])]
    seen = digest(*(model.parts()[part] for part in parts))
    return Encoded(latents, tokens, text, mask, pooled, text_of, first, model.zero_image_tokens().cpu(), seen)


@torch.no_grad()
def foresee(model: KeyStepModel, data: Encoded) -> Tensor:
    """Rolled-out tokens [P, N, C] for every key image of the pool; the true ones where nothing is predicted."""
    foreseen = data.tokens.clone()
    by_length: dict[int, list[int]] = {}
    for i, texts in enumerate(data.text_of):
        by_length.setdefault(len(texts), []).append(i)
    for steps, members in by_length.items():
        for start in range(0, len(members), 64):
            part = members[start : start + 64]
            numbers = torch.tensor([data.text_of[i] for i in part])
            rows = torch.tensor([data.first[i] for i in part])
            with bf16(model):
                given = data.tokens[rows].float(), data.text[numbers], data.mask[numbers]
                out = model.skill_transformer.roll_out(*(t.to(model.device) for t in given)).cpu()
            for k in range(1, steps):
                foreseen[rows + k] = out[:, k].half()
    return foreseen
