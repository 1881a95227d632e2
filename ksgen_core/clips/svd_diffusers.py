"""How the pipeline of Stable Video Diffusion is used. It takes no text.

Legend: H, W pixels, Z latent channels, h, w latents.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import pixels
from .ways import Shot, Way, picture

if TYPE_CHECKING:
    from .clip_diffusers import ClipModel

DECODED_TOGETHER = 8
"""Frames; as in the model card. All 25 of a clip together want more memory than all that came before."""


def _arguments(model: ClipModel, shot: Shot) -> dict[str, Any]:
    return {
        # The pipeline resizes 8-bit pictures alone for its image encoder.
        "image": pixels.to_pil(shot.image),
        **shot.size,
        "num_frames": shot.frames,
        "num_inference_steps": shot.updates,
        # From the first frame to the last.
        "min_guidance_scale": 1.0,
        "max_guidance_scale": shot.guidance,
        # It is conditioned on whole rates.
        "fps": max(1, round(shot.fps)),
        "decode_chunk_size": DECODED_TOGETHER,
        # Not only for the noise of the latents: the picture gets some too.
        "generator": shot.generator(),
    }


def _running(model: ClipModel, shot: Shot) -> Any:
    """The pipeline, its picture in the VAE's own dtype: before 0.40 it stayed in float32."""
    pipe = copy.copy(model.pipe)
    encode = pipe._encode_vae_image
    pipe._encode_vae_image = lambda image, *args, **more: encode(image.to(pipe.vae.dtype), *args, **more)
    return pipe


def _latent(model: ClipModel, image: Tensor) -> Tensor:
    vae = model.pipe.vae
    # Its encoder overflows in float16; the pipeline does the same.
    widened = vae.dtype == torch.float16 and vae.config.force_upcast
    if widened:
        vae.to(torch.float32)
    latent = vae.encode((picture(image) * 2 - 1).to(model.device, vae.dtype)).latent_dist.mode()
    if widened:
        vae.to(torch.float16)
    return (latent * vae.config.scaling_factor)[0]


SVD = Way(
    # Each level of the UNet but the last halves the latents, and needs to get the same size back.
    side_multiple=lambda pipe: pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1),
    arguments=_arguments,
    encode=None,
    latent=_latent,
    # [1, f, Z, h, w]
    last=lambda model, foreseen, image: foreseen[0, -1],
    running=_running,
)
