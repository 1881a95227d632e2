"""How CogVideoX's pipeline is used.

Legend: H, W pixels, Z latent channels, h, w latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .ways import Embeds, Shot, Way, picture

if TYPE_CHECKING:
    from .clip_diffusers import ClipModel


def _arguments(model: ClipModel, shot: Shot) -> dict[str, Any]:
    return {
        "image": picture(shot.image),
        **shot.size,
        **shot.texts,
        "num_frames": shot.frames,
        "num_inference_steps": shot.updates,
        "guidance_scale": shot.guidance,
        "max_sequence_length": model.pipe.transformer.config.max_text_seq_length,
        # Not only for the noise: the picture's latent is drawn from what the VAE says of it.
        "generator": shot.generator(),
    }


def _encode(model: ClipModel, text: str) -> Embeds:
    length = model.pipe.transformer.config.max_text_seq_length
    embeds, _ = model.pipe.encode_prompt(
        text, do_classifier_free_guidance=False, max_sequence_length=length, device=model.device
    )
    return {"prompt_embeds": embeds}


def _latent(model: ClipModel, image: Tensor) -> Tensor:
    vae = model.pipe.vae
    frame = (picture(image) * 2 - 1)[:, :, None].to(model.device, vae.dtype)
    return (vae.encode(frame).latent_dist.mode() * vae.config.scaling_factor)[0, :, 0]


def _own_size(pipe: Any) -> tuple[int, int] | None:
    """CogVideoX-5B-I2V learned where its patches are, for one size alone."""
    config, scale = pipe.transformer.config, pipe.vae_scale_factor_spatial
    if not config.use_learned_positional_embeddings:
        return None
    return config.sample_height * scale, config.sample_width * scale


COGVIDEOX = Way(
    side_multiple=lambda pipe: pipe.vae_scale_factor_spatial * pipe.transformer.config.patch_size,
    arguments=_arguments,
    encode=_encode,
    latent=_latent,
    # [1, f, Z, h, w]
    last=lambda model, foreseen, image: foreseen[0, -1],
    own_size=_own_size,
)
