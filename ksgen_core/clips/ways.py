"""What the pipelines of diffusers want each in its own way: small functions, one `Way` a pipeline.

Legend: F frames, H, W pixels, Z latent channels, f, h, w latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import pixels
from ..types import Sound

if TYPE_CHECKING:
    from .clip_diffusers import ClipModel

Embeds = dict[str, Tensor]
"""A text as a pipeline takes it: the names of its arguments, each a tensor with a batch of one. The negative text's
arguments have the same names with "negative_" in front."""


@dataclass(frozen=True)
class Shot:
    """All that one clip is made from: pictures [H, W, 3] of its very size, the texts' embeds."""

    image: Tensor
    last: Tensor | None
    frames: int
    updates: int
    guidance: float
    guidance_2: float | None
    fps: float
    seed: int
    text: Embeds
    negative: Embeds

    @property
    def size(self) -> dict[str, int]:
        return {"height": self.image.shape[0], "width": self.image.shape[1]}

    @property
    def texts(self) -> Embeds:
        return {**self.text, **{f"negative_{name}": tensor for name, tensor in self.negative.items()}}

    def generator(self) -> torch.Generator:
        """On the CPU, so that the same numbers are drawn for any device (HOUSE.md, example 10)."""
        return torch.Generator("cpu").manual_seed(self.seed)


@dataclass(frozen=True)
class Way:
    """How one pipeline is used.

    `side_multiple`: height and width of a clip are multiples of this. `arguments` are those of its call, but for
    `output_type`. `encode` is one text as it takes it, None: it takes none. `latent` is a picture [H, W, 3] encoded as
    its sampler has it, [Z, h, w]; `last` the last frame's of what its scheduler foresees of the clip of a picture, the
    same, or None if that cannot be unfolded; without both there is no preview. `own_size` is the one size that a model
    can render, or None, `bucket` the one for pictures of a height and width, or None.

    `running` is the pipeline that is called, `film` makes [1, F, 3, H, W] of its call and what it gave, and `own` says
    what a model's components know of its defaults, as a folder's `ksgen.json` would. `sound` is what the pipeline gave
    to hear.
    """

    side_multiple: Callable[[Any], int]
    arguments: Callable[[ClipModel, Shot], dict[str, Any]]
    encode: Callable[[ClipModel, str], Embeds] | None
    latent: Callable[[ClipModel, Tensor], Tensor] | None = None
    last: Callable[[ClipModel, Tensor, Tensor], Tensor | None] = lambda model, foreseen, image: None
    own_size: Callable[[Any], tuple[int, int] | None] = lambda _: None
    bucket: Callable[[Any, int, int], tuple[int, int] | None] = lambda pipe, height, width: None
    running: Callable[[ClipModel, Shot], Any] = lambda model, shot: model.pipe
    film: Callable[[ClipModel, dict[str, Any], Any], Tensor] = lambda model, call, result: result.frames
    own: Callable[[Any], dict[str, Any]] = lambda _: {}
    sound: Callable[[ClipModel, Any], Sound | None] = lambda model, result: None


def picture(image: Tensor) -> Tensor:
    """[H, W, 3] -> [1, 3, H, W], 0..1, as diffusers' image processors take tensors."""
    return image.movedim(-1, 0)[None]


def _wan_arguments(model: ClipModel, shot: Shot) -> dict[str, Any]:
    pipe = model.pipe
    height, width = shot.image.shape[:2]
    scale = pipe.vae_scale_factor_spatial
    count = (shot.frames - 1) // pipe.vae_scale_factor_temporal + 1
    # With an image encoder: its processor takes 8-bit pictures.
    form = picture if pipe.transformer.config.image_dim is None else pixels.to_pil
    two = pipe.config.boundary_ratio is not None
    chance = shot.generator()
    return {
        "image": form(shot.image),
        **({} if shot.last is None else {"last_image": form(shot.last)}),
        **shot.size,
        **shot.texts,
        "num_frames": shot.frames,
        "num_inference_steps": shot.updates,
        "guidance_scale": shot.guidance,
        **({"guidance_scale_2": shot.guidance_2} if two else {}),
        # What ComfyUI's samplers draw for this seed.
        "latents": torch.randn((1, pipe.vae.config.z_dim, count, height // scale, width // scale), generator=chance),
        # What stochastic schedulers draw after it.
        "generator": chance,
    }


WAN = Way(
    side_multiple=lambda pipe: pipe.vae_scale_factor_spatial * pipe.transformer.config.patch_size[1],
    arguments=_wan_arguments,
    encode=lambda model, text: {"prompt_embeds": model.encode_texts([text])},
    latent=lambda model, image: model.encode_frames(image[None, None])[0, :, 0],
    last=lambda model, foreseen, image: foreseen[0, :, -1],
)
