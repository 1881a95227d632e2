"""How HunyuanVideo 1.5's pipeline is used, see `ways`.

It chooses the clip's size by the picture's, one of those with about as many pixels as the model was trained for, and
takes the guidance from a component, not from its call.

Legend: F frames, H, W pixels, Z latent channels, f, h, w latents.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import pixels
from ..checkpoints_diffusers import quietly
from .ways import Embeds, Shot, Way, picture

if TYPE_CHECKING:
    from .clip_diffusers import ClipModel

TEXTS = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")


def _bucket(pipe: Any, height: int, width: int) -> tuple[int, int]:
    return pipe.video_processor.calculate_default_height_width(height=height, width=width, target_size=pipe.target_size)


def _own(pipe: Any) -> dict[str, Any]:
    """Its folders say their guidance; 12 updates are for the one distilled to few, the only one with `use_meanflow`."""
    few = {"updates": 12} if pipe.transformer.config.use_meanflow else {}
    return {"guidance": float(pipe.guider.config.guidance_scale), **few}


def _encode(model: ClipModel, text: str) -> Embeds:
    return dict(zip(TEXTS, model.pipe.encode_prompt([text], device=model.device, dtype=model.dtype), strict=True))


def _latent(model: ClipModel, image: Tensor) -> Tensor:
    """A picture [H, W, 3] -> [Z, h, w], as the sampler has it."""
    vae = model.pipe.vae
    film = (picture(image) * 2 - 1)[:, :, None].to(model.device, vae.dtype)
    return vae.encode(film).latent_dist.mode()[0, :, 0].float() * vae.config.scaling_factor


def _arguments(model: ClipModel, shot: Shot) -> dict[str, Any]:
    return {
        "image": pixels.to_pil(shot.image),
        **shot.texts,
        "num_frames": shot.frames,
        "num_inference_steps": shot.updates,
        "generator": shot.generator(),
    }


def _running(model: ClipModel, shot: Shot) -> Any:
    """The pipeline with this guidance, and one that leaves the picture's size as it is: it has been chosen before, and
    chosen again, from the chosen one, it would at times be another, since the rule compares rounded proportions."""
    running = copy.copy(model.pipe)
    with quietly():  # it says each time that it is new in diffusers
        running.guider = model.pipe.guider.new(guidance_scale=shot.guidance)
    running.video_processor = copy.copy(model.pipe.video_processor)
    running.video_processor.calculate_default_height_width = lambda height, width, target_size: (height, width)
    return running


HUNYUAN = Way(
    side_multiple=lambda pipe: pipe.vae_scale_factor_spatial * pipe.transformer.config.patch_size,
    arguments=_arguments,
    encode=_encode,
    latent=_latent,
    last=lambda model, foreseen, image: foreseen[0, :, -1],
    running=_running,
    bucket=_bucket,
    own=_own,
)
