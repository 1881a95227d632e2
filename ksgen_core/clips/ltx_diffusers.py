"""How LTX-Video's and LTX-2's pipelines are used, see `ways`.

Both work on latents in rows of tokens, one of 32 x 32 pixels and 8 frames, the first frame a latent of its own.

Legend: F frames, H, W pixels, Z latent channels, f, h, w latents, S = f h w tokens.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import pixels
from ..types import Sound
from .ways import Embeds, Shot, Way, picture

if TYPE_CHECKING:
    from .clip_diffusers import ClipModel

# For the VAEs from 0.9.1 on, which do the last bit of denoising: the noise that they get, and how much it is said to
# be. configs/ltxv-13b-0.9.7-dev.yaml in https://github.com/Lightricks/LTX-Video
DECODE_TIMESTEP, DECODE_NOISE = 0.05, 0.025
# diffusers' docs/source/en/api/pipelines/ltx_video.md, for 0.9.7: what it adds to guidance, and that the given pictures
# are not blurred by noise.
RESCALE, PICTURE_NOISE = 0.7, 0.0

# LTX_2_3_PARAMS in packages/ltx-pipelines/src/ltx_pipelines/utils/constants.py, https://github.com/Lightricks/LTX-2:
# beside the guidance of the picture stand that of the sound, the distance from a transformer with one block perturbed,
# and the distance from one whose picture and sound do not see each other.
GUIDED_2_3 = {
    "audio_guidance_scale": 7.0,
    "stg_scale": 1.0,
    "audio_stg_scale": 1.0,
    "modality_scale": 3.0,
    "audio_modality_scale": 3.0,
    "guidance_rescale": 0.7,
    "audio_guidance_rescale": 0.7,
    "spatio_temporal_guidance_blocks": [28],
}
# LTX-2.0 was published with guidance of picture and sound alone.
PLAIN = {
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_rescale": 0.0,
}


def _common(model: ClipModel, shot: Shot) -> dict[str, Any]:
    return {
        **shot.texts,
        **shot.size,
        "num_frames": shot.frames,
        "frame_rate": shot.fps,
        "num_inference_steps": shot.updates,
        "guidance_scale": shot.guidance,
        "generator": shot.generator(),
    }


def _encode(model: ClipModel, text: str) -> Embeds:
    embeds, mask, _, _ = model.pipe.encode_prompt(
        [text], do_classifier_free_guidance=False, device=model.device, dtype=model.dtype
    )
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask}


def _latent(model: ClipModel, image: Tensor) -> Tensor:
    """A picture [H, W, 3] -> [Z, h, w], as the sampler has it."""
    pipe, vae = model.pipe, model.pipe.vae
    film = (picture(image) * 2 - 1)[:, :, None].to(model.device, vae.dtype)
    latents = vae.encode(film).latent_dist.mode().float()
    return pipe._normalize_latents(latents, vae.latents_mean, vae.latents_std)[0, :, 0]


def _noise_to_decode(model: ClipModel) -> dict[str, float]:
    if not model.pipe.vae.config.timestep_conditioning:
        return {}
    return {"decode_timestep": DECODE_TIMESTEP, "decode_noise_scale": DECODE_NOISE}


def _from_tokens(model: ClipModel, tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens [1, S, D] of pictures of that size -> [1, Z, f, h, w]."""
    pipe = model.pipe
    scale, patch, patch_t = (
        pipe.vae_spatial_compression_ratio,
        pipe.transformer_spatial_patch_size,
        pipe.transformer_temporal_patch_size,
    )
    h, w = height // scale, width // scale
    frames = tokens.shape[1] * patch * patch * patch_t // (h * w)
    return pipe._unpack_latents(tokens, frames // patch_t, h // patch, w // patch, patch, patch_t)


def _side_multiple(pipe: Any) -> int:
    # The pipelines ask for multiples of 32, whatever the VAE.
    scale = pipe.vae_spatial_compression_ratio * pipe.transformer_spatial_patch_size
    return scale if scale % 32 == 0 else 32


def _ltx_arguments(model: ClipModel, shot: Shot) -> dict[str, Any]:
    # The pipeline draws the noise for such a VAE on the device, from a generator that is on the CPU: see `_ltx_film`.
    ours = bool(model.pipe.vae.config.timestep_conditioning)
    return {
        **_common(model, shot),
        "image": picture(shot.image),
        **({"output_type": "latent"} if ours else {}),
    }


@torch.no_grad()
def _ltx_film(model: ClipModel, call: dict[str, Any], result: Any) -> Tensor:
    """The pipeline's last lines, for latents that it was told to give back: [1, F, 3, H, W]."""
    if call["output_type"] != "latent":
        return result.frames
    pipe, vae = model.pipe, model.pipe.vae
    latents = _from_tokens(model, result.frames, call["height"], call["width"])
    latents = pipe._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    latents = latents.to(call["prompt_embeds"].dtype)
    noise = torch.randn(latents.shape, generator=call["generator"], dtype=latents.dtype).to(latents.device)
    latents = (1 - DECODE_NOISE) * latents + DECODE_NOISE * noise
    timestep = torch.tensor([DECODE_TIMESTEP], device=latents.device, dtype=latents.dtype)
    return pipe.video_processor.postprocess_video(vae.decode(latents, timestep, return_dict=False)[0], output_type="pt")


def _ltx_condition_arguments(model: ClipModel, shot: Shot) -> dict[str, Any]:
    given = [(shot.image, 0), *([] if shot.last is None else [(shot.last, shot.frames - 1)])]
    return {
        **_common(model, shot),
        **_noise_to_decode(model),
        "image": [picture(image) for image, _ in given],
        "video": [None] * len(given),
        "frame_index": [at for _, at in given],
        "strength": [1.0] * len(given),
        "guidance_rescale": RESCALE,
        "image_cond_noise_scale": PICTURE_NOISE,
    }


def _last_row(model: ClipModel, foreseen: Tensor, image: Tensor) -> Tensor:
    """The last frame's, of tokens [1, S, D] with those of given pictures in front."""
    height, width = image.shape[:2]
    return _from_tokens(model, foreseen[:, -_row(model, height, width) :], height, width)[0, :, -1]


def _row(model: ClipModel, height: int, width: int) -> int:
    """The tokens of one latent frame."""
    side = model.pipe.vae_spatial_compression_ratio * model.pipe.transformer_spatial_patch_size
    return (height // side) * (width // side)


def _ltx2_arguments(model: ClipModel, shot: Shot) -> dict[str, Any]:
    newer = bool(model.pipe.transformer.config.cross_attn_mod)
    if shot.guidance == 1:
        guided = {**PLAIN, "audio_guidance_scale": 1.0}
    elif newer:
        guided = GUIDED_2_3
    else:
        guided = {**PLAIN, "audio_guidance_scale": shot.guidance}
    known = inspect.signature(type(model.pipe).__call__).parameters
    # In 8 bits, since the pipeline compresses given pictures as the films were that the model was trained on.
    first = pixels.to_pil(shot.image)
    return {
        **_common(model, shot),
        **_noise_to_decode(model),
        **guided,
        # By which timestep picture and sound look at each other: since 2.3 by the other's, which newer versions of
        # diffusers take for granted and older ones do not know.
        **({"use_cross_timestep": newer} if "use_cross_timestep" in known else {}),
        **({"image": first} if shot.last is None else {"conditions": _two_ends(first, pixels.to_pil(shot.last))}),
    }


def _two_ends(first: Any, last: Any) -> list[Any]:
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    return [LTX2VideoCondition(frames=first, index=0), LTX2VideoCondition(frames=last, index=-1)]


def _ltx2_running(model: ClipModel, shot: Shot) -> Any:
    """With a last frame: the pipeline that takes one, of the same components."""
    if shot.last is None:
        return model.pipe
    from diffusers import LTX2ConditionPipeline

    taken = inspect.signature(LTX2ConditionPipeline.__init__).parameters
    return LTX2ConditionPipeline(**{name: part for name, part in model.pipe.components.items() if name in taken})


def _ltx2_sound(model: ClipModel, result: Any) -> Sound:
    return Sound(result.audio[0].float().cpu().clamp(-1, 1), model.pipe.vocoder.config.output_sampling_rate)


def _ltx2_last(model: ClipModel, foreseen: Tensor, image: Tensor) -> Tensor:
    """The last frame's, of [1, Z, f, h, w], or of tokens [1, S, D] with those of the picture to end in behind."""
    if foreseen.ndim == 5:
        return foreseen[0, :, -1]
    return _last_row(model, foreseen[:, : -_row(model, *image.shape[:2])], image)


LTX = Way(
    side_multiple=_side_multiple,
    arguments=_ltx_arguments,
    encode=_encode,
    latent=_latent,
    last=lambda model, foreseen, image: foreseen[0, :, -1],
    film=_ltx_film,
)
LTX_CONDITION = Way(
    side_multiple=_side_multiple,
    arguments=_ltx_condition_arguments,
    encode=_encode,
    latent=_latent,
    last=_last_row,
)
LTX2 = Way(
    side_multiple=_side_multiple,
    arguments=_ltx2_arguments,
    encode=_encode,
    latent=_latent,
    last=_ltx2_last,
    running=_ltx2_running,
    sound=_ltx2_sound,
)
