"""Image tokens of a plan's steps, and where an IP-Adapter's layers belong in another host's SDXL.

What does not depend on the library that runs the UNet: which tokens a step gets, which rows of a batch get them, and
which layer of the adapter's file stands in which block.

Legend: T steps, N image tokens per picture, C their width, L tokens per text, K their width, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import KSGenError
from .skill_transformer import SkillTransformer


@dataclass(frozen=True)
class ImageTokens:
    """tokens [T, N, C] of every step, empty [N, C] those of the zero image, both float32 on the CPU.

    `adapter` is whatever turns them into attention: the tokens mean something to this one alone.
    """

    tokens: Tensor
    empty: Tensor
    adapter: Any

    def steps(self, number: int) -> list[int]:
        """The steps, counted from 0, that a number counted from 1 asks for; 0 asks for all.

        Raises `KSGenError` if there is no such step.
        """
        if not 0 <= number <= len(self.tokens):
            raise KSGenError(
                f"Step {number} was asked for, but there are image tokens of {len(self.tokens)} steps. "
                "Choose a number from 1 on, or 0 for all steps."
            )
        return [number - 1] if number else list(range(len(self.tokens)))


@dataclass(frozen=True)
class Place:
    """One cross-attention of a UNet: its name in the host, and the shape of its keys' weights [width, C]."""

    name: tuple[str, int, int]
    shape: tuple[int, int]


def attention_layers(adapter: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The weights `to_k_ip`, `to_v_ip` [width, C] of an IP-Adapter file, in the order of diffusers' attention
    processors: all blocks down, all blocks up, the middle block.

    Raises `KSGenError` if one of a pair is missing.
    """
    numbers = sorted({int(key.split(".")[1]) for key in adapter if key.startswith("ip_adapter.")})
    names = ("to_k_ip", "to_v_ip")
    layers = []
    for number in numbers:
        keys = [f"ip_adapter.{number}.{name}.weight" for name in names]
        if lacking := [key for key in keys if key not in adapter]:
            raise KSGenError(f"The IP-Adapter file lacks {lacking[0]}. Get the file again.")
        layers.append((adapter[keys[0]], adapter[keys[1]]))
    return layers


def check_places(wanted: Sequence[tuple[int, int]], places: Sequence[Place], model: str, adapter: str) -> None:
    """Raise `KSGenError` unless an adapter whose keys have the shapes `wanted` fits these places, saying what was got
    and wanted. `model` and `adapter` are their names.
    """
    got = [place.shape for place in places]
    if got == list(wanted):
        return
    if len(got) != len(wanted):
        difference = f"it has {len(got)} cross-attention layers, the adapter is for {len(wanted)}"
    else:
        number = next(k for k, (one, two) in enumerate(zip(got, wanted, strict=True)) if one != two)
        difference = (
            f"the keys of its cross-attention {places[number].name} have the shape {got[number]}, the adapter is for "
            f"{wanted[number]}"
        )
    raise KSGenError(
        f"The IP-Adapter {adapter} does not fit this MODEL, a {model}: {difference}. Connect the model that the "
        "adapter was made for: an SDXL model for an SDXL adapter."
    )


def until_end(tokens: Sequence[Any], end: int) -> list[bool]:
    """Which tokens of a padded text are there: those up to the first end token and this one itself.

    Tokens need not be numbers: a learned embedding stands in its place as a tensor.
    """
    for k, token in enumerate(tokens):
        if isinstance(token, int) and token == end:
            return [i <= k for i in range(len(tokens))]
    return [True] * len(tokens)


def check_steps(skill: SkillTransformer, steps: int) -> None:
    """Raise `KSGenError` if the Skill Transformer was made for fewer steps."""
    if steps > skill.config.max_images:
        raise KSGenError(
            f"The plan has {steps} steps, the Skill Transformer was made for at most {skill.config.max_images}. "
            "Split the plan, or choose the policy 'initial picture'."
        )


@torch.no_grad()
def foresee(skill: SkillTransformer, first: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
    """From the tokens [N, C] of the initial picture, the texts [T, L, K] of all steps and their mask [T, L] (False:
    padding) to the tokens [T, N, C] of every step's first picture; that of step 0 is the initial picture itself.

    Raises `KSGenError` if the Skill Transformer was made for other sizes or fewer steps.
    """
    check_steps(skill, len(texts))
    config = skill.config
    got = (first.shape[-1], first.shape[-2], texts.shape[-1])
    wanted = (config.token_width, config.tokens_per_image, config.text_width)
    if got != wanted:
        raise KSGenError(
            "The Skill Transformer does not belong to this IP-Adapter and CLIP: token width, tokens per image and "
            f"text width are {got} here, it was trained on {wanted}. Choose the files that belong together."
        )
    like = skill.norm_out.weight
    first, texts = (tensor[None].to(like.device, like.dtype) for tensor in (first, texts))
    return skill.roll_out(first, texts, mask[None].to(like.device))[0]


def rows(pair: Tensor, cond_or_uncond: Sequence[int], batch: int) -> Tensor:
    """pair [2, ...]: what a conditional and an unconditional row get -> [B, ...] for a batch that consists of equal
    chunks, 0 for a conditional chunk and another number for one that is not. No chunks named: all are conditional.

    Raises `KSGenError` if the chunks cannot be equal: which row is which nobody knows then.
    """
    chunks = list(cond_or_uncond) or [0]
    size, rest = divmod(batch, len(chunks))
    if rest:
        raise KSGenError(
            f"A batch of {batch} rows came for {len(chunks)} conditionings, of which each should have as many rows as "
            "the others, so nobody knows which image tokens a row should get. A node between 'Apply Image Tokens' and "
            "the sampler changes the batch: leave that node out."
        )
    return torch.cat([pair[int(chunk != 0)][None].expand(size, *pair.shape[1:]) for chunk in chunks])
