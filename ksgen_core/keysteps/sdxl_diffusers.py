"""The key-step image model: SDXL or Kolors with IP-Adapter-Plus image tokens, read from a folder of ordinary parts.

    model_index.json unet/ vae/ text_encoder/ text_encoder_2/ tokenizer/ tokenizer_2/ scheduler/    diffusers' SDXL
    image_encoder/                             transformers' CLIPVisionModelWithProjection
    ip_adapter/ip-adapter-plus.safetensors     the IP-Adapter-Plus file format
    skill_transformer.safetensors              ours
    ksgen.json                                 the settings that suit this very model

The last four may be absent, or the parts come from elsewhere; without a part only the policies that do without it can
be drawn. Kolors' folders have one text encoder and one tokenizer.

Legend: B pictures, H, W their size in pixels, h, w that of their latents, Z latent channels, T texts, L tokens per
text, C their width, P pooled width, M image encoder's states of width E, N image tokens (of width C).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints_diffusers import quietly
from ..errors import KSGenError
from ..residence_diffusers import keep_on_device
from .draw import Condition, draw_key_steps
from .ip_adapter_plus import install, read
from .policies import read_defaults
from .sdxl_files_diffusers import (
    ADAPTER_FILE,
    CLIP_MEAN,
    CLIP_STD,
    SKILL_TRANSFORMER_FILE,
    backbone_of,
    check,
    mean_and_std,
    read_image_encoder,
    read_pipe,
    save_folder,
    scales_reference,
)
from .skill_transformer import SkillTransformer

__all__ = ["Condition", "KeyStepModel", "draw_key_steps"]

TEXTS_AT_ONCE = 16
"""A plan may have 999 steps, and the text encoders keep the states of all their layers."""


class KeyStepModel:
    """All parts for drawing key images. The parts are plain attributes.

    `pipe` is diffusers' `StableDiffusionXLPipeline` or `KolorsPipeline`, `image_encoder`, `resampler` and
    `skill_transformer` may be None. `device` is where the model computes, `dtype` what in: inputs are sent there,
    wherever a part is kept between its calls. `defaults` are the folder's own draw settings. `scales_reference` says
    whether the latents beside the noise are scaled as those of the noise are. Every method is differentiable; whoever
    only draws wraps it in `torch.no_grad()`.
    """

    denoisers = ("unet",)
    """Names in `parts()` of what runs in every update."""

    def __init__(
        self,
        pipe: Any,
        image_encoder: Any = None,
        adapter: dict[str, Tensor] | None = None,
        skill_transformer: SkillTransformer | None = None,
        image_mean: tuple[float, ...] = CLIP_MEAN,
        image_std: tuple[float, ...] = CLIP_STD,
        folder: Path | None = None,
        defaults: dict[str, Any] | None = None,
        scales_reference: bool = True,
    ) -> None:
        self.pipe = pipe
        self.scales_reference = scales_reference
        self.backbone = backbone_of(pipe)
        self.image_encoder = image_encoder
        with quietly():
            self.resampler: Any = None if adapter is None else install(pipe.unet, adapter)
        self.skill_transformer: Any = skill_transformer
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.folder = folder
        self.defaults = dict(defaults or {})
        self.device: torch.device = pipe.unet.device
        self.dtype: torch.dtype = pipe.unet.dtype

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        adapter: str | Path | None = None,
        image_encoder: str | Path | None = None,
        skill_transformer: str | Path | None = None,
        place: Callable[[KeyStepModel], object] | None = None,
    ) -> KeyStepModel:
        """Read the folder. Raises `KSGenError`, naming the file, if one is missing, cut off or of another kind.

        The IP-Adapter-Plus file, the folder of the image encoder and the Skill Transformer's file may lie elsewhere;
        one that is given wins over the folder's own. `place` takes over where the parts are kept; without it they all
        stay on `device`.
        """
        folder = Path(folder)
        backbone = check(folder)
        own = {name: folder / name for name in (ADAPTER_FILE, "image_encoder", SKILL_TRANSFORMER_FILE)}
        adapter_file = _given(adapter, own[ADAPTER_FILE])
        encoder_folder = _given(image_encoder, own["image_encoder"])
        skill_file = _given(skill_transformer, own[SKILL_TRANSFORMER_FILE])
        with quietly():
            pipe = read_pipe(folder, backbone, dtype)
            encoder = encoder_folder and read_image_encoder(encoder_folder, dtype)
            tensors = adapter_file and read(adapter_file)
            skill = skill_file and SkillTransformer.load(skill_file, dtype=dtype)
            mean, std = mean_and_std((encoder_folder or folder) / "preprocessor_config.json")
            try:
                more = (folder, read_defaults(folder), scales_reference(folder))
                model = cls(pipe, encoder, tensors, skill, mean, std, *more)
            except (KeyError, ValueError, RuntimeError) as error:
                raise KSGenError(f"{adapter_file} does not fit the UNet ({error}). Use one made for it.") from error
        for part in model.parts().values():
            part.eval()
        if model.resampler is not None:
            model.resampler.to(dtype)
        if dtype == torch.float16 and pipe.vae.config.force_upcast:
            pipe.vae.to(torch.float32)  # SDXL's own VAE overflows in half precision
        model.check_fit()
        model.device = torch.device(device)
        (place or keep_on_device)(model)
        return model

    def check_fit(self) -> None:
        """Raise `KSGenError` if parts that come from different places were not made for each other."""
        unet, channels = self.pipe.unet.config, self.latent_channels
        if unet.in_channels not in (channels, 2 * channels) or unet.time_cond_proj_dim is not None:
            raise KSGenError(
                f"The UNet in {self.folder} is one for other work: it takes {unet.in_channels} channels where "
                f"{channels} or {2 * channels} are wanted, or its strength of guidance is built in (LCM). Choose a "
                "text-to-image one."
            )
        if self.resampler is None:
            return
        if self.image_encoder is None:
            raise KSGenError(
                f"There is an IP-Adapter-Plus for {self.folder} but no image encoder. Put the one that belongs to it "
                "into image_encoder/."
            )
        got, wanted = self.image_encoder.config.hidden_size, self.resampler.proj_in.in_features
        if got != wanted:
            raise KSGenError(
                f"The image encoder for {self.folder} gives states of width {got}, the IP-Adapter-Plus was made for "
                f"{wanted} (ViT-H has 1280, ViT-L 1024). Use the image encoder that belongs to the adapter."
            )
        if self.skill_transformer is None:
            return
        config = self.skill_transformer.config
        sizes = (config.token_width, config.text_width, config.tokens_per_image)
        here = (unet.cross_attention_dim, self.backbone.text_width(self.pipe), self.resampler.latents.shape[1])
        if sizes != here:
            raise KSGenError(
                f"The Skill Transformer for {self.folder} was made for another model: its token width, text width "
                f"and tokens per image are {sizes}, here they are {here}. Use the one that belongs to this model."
            )

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the folder that `load` reads, weights in `dtype`. The model itself stays as it is."""
        save_folder(self, Path(folder), dtype)

    def parts(self) -> dict[str, nn.Module]:
        """The trainable parts by name; the adapter's attention layers are inside the UNet."""
        parts = {name: getattr(self.pipe, name) for name in self.backbone.weights}
        for name in ("image_encoder", "resampler", "skill_transformer"):
            if getattr(self, name) is not None:
                parts[name] = getattr(self, name)
        return parts

    @property
    def latent_channels(self) -> int:
        return self.pipe.vae.config.latent_channels

    @property
    def takes_reference(self) -> bool:
        """Does the UNet have room for the initial picture's latents beside the noise (SDXL-InstructPix2Pix)?"""
        return self.pipe.unet.config.in_channels == 2 * self.latent_channels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of key images in pixels."""
        side = self.pipe.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        return height * self.pipe.vae_scale_factor, width * self.pipe.vae_scale_factor

    def encode_texts(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Each text on its own, as the family does -> tokens [T, L, C], mask [T, L] (False: padding), pooled [T, P]."""
        texts = list(texts)
        parts = [
            self.backbone.encode(self.pipe, texts[i : i + TEXTS_AT_ONCE], self.device)
            for i in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        tokens, mask, pooled = (torch.cat(group) for group in zip(*parts, strict=True))
        return tokens.to(self.dtype), mask, pooled.to(self.dtype)

    def image_states(self, images: Tensor) -> Tensor:
        """Pictures [B, H, W, 3] -> penultimate hidden states [B, M, E] of the image encoder (METHOD.md)."""
        side = self._image_encoder().config.image_size
        pixels = images.to(self.device, torch.float32).movedim(-1, 1)
        # The whole picture, as IP-Adapter's README advises for one that is not square; CLIP's own way cuts its sides.
        if pixels.shape[-2:] != (side, side):
            pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (self.image_mean, self.image_std))
        return self._states((pixels - mean) / std)

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures [B, H, W, 3] -> image tokens [B, N, C]."""
        return self.resampler(self.image_states(images))

    def zero_image_tokens(self) -> Tensor:
        """The tokens [N, C] of the zero image, which stand for "no image" in guidance.

        Zero after normalisation, as diffusers' and IP-Adapter's own `encode_image` have it.
        """
        side = self._image_encoder().config.image_size
        return self.resampler(self._states(torch.zeros(1, 3, side, side, device=self.device)))[0]

    def _image_encoder(self) -> Any:
        if self.image_encoder is None or self.resampler is None:
            raise KSGenError(
                f"{self.folder} has no image tokens: image_encoder/ or {ADAPTER_FILE} is missing. Put an "
                "IP-Adapter-Plus and its image encoder there, or choose a policy that needs none."
            )
        return self.image_encoder

    def _states(self, pixels: Tensor) -> Tensor:
        return self.image_encoder(pixels.to(self.dtype), output_hidden_states=True).hidden_states[-2]

    def encode_latents(self, images: Tensor) -> Tensor:
        """Pictures [B, H, W, 3] -> scaled latents [B, Z, h, w]: the most likely ones, nothing is drawn by chance."""
        latents = self._raw_latents(images)
        mean, std = self._latent_statistics(latents)
        return ((latents - mean) * self.pipe.vae.config.scaling_factor / std).to(self.dtype)

    def _raw_latents(self, images: Tensor) -> Tensor:
        vae = self.pipe.vae
        pixels = images.to(self.device, vae.dtype).movedim(-1, 1) * 2 - 1
        return vae.encode(pixels).latent_dist.mode()

    def encode_reference(self, images: Tensor) -> Tensor:
        """Pictures [B, H, W, 3] -> latents [B, Z, h, w] as the UNet was trained to see them beside the noise."""
        if self.scales_reference:
            return self.encode_latents(images)
        return self._raw_latents(images).to(self.dtype)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, Z, h, w] -> pictures [B, H, W, 3], float32 0..1."""
        vae = self.pipe.vae
        latents = latents.to(self.device, vae.dtype)
        mean, std = self._latent_statistics(latents)
        pixels = vae.decode(latents * std / vae.config.scaling_factor + mean, return_dict=False)[0]
        return (pixels.float().movedim(1, -1) / 2 + 0.5).clamp(0, 1)

    def _latent_statistics(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Mean and deviation of each latent channel, where the VAE says them (Playground v2.5), else 0 and 1."""
        config = self.pipe.vae.config
        found = [getattr(config, f"latents_{name}", None) for name in ("mean", "std")]
        if None in found:
            return 0.0, 1.0
        mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in found)
        return mean, std

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """One UNet pass: noisy latents [B, Z, h, w], already scaled for the model, timesteps [B] or scalar
        -> the scheduler's prediction type [B, Z, h, w].
        """
        noisy = noisy.to(self.device)
        batch, _, height, width = noisy.shape
        height, width = height * self.pipe.vae_scale_factor, width * self.pipe.vae_scale_factor
        # Original size, crop corner, target size: SDXL's micro-conditions, for a picture that is whole.
        time_ids = noisy.new_tensor([[height, width, 0, 0, height, width]]).expand(batch, -1)
        added: dict[str, Any] = {"text_embeds": condition.pooled, "time_ids": time_ids}
        if self.resampler is not None:
            added["image_embeds"] = [condition.image_tokens]
        if self.takes_reference:
            reference = torch.zeros_like(noisy) if condition.reference is None else condition.reference
            noisy = torch.cat([noisy, reference], dim=1)
        elif condition.reference is not None:
            raise KSGenError(
                f"The UNet in {self.folder} has no room for a reference picture: it takes "
                f"{self.pipe.unet.config.in_channels} channels, {2 * self.latent_channels} are needed."
            )
        return self.pipe.unet(
            noisy, timesteps, encoder_hidden_states=condition.text, added_cond_kwargs=added, return_dict=False
        )[0]


def _given(path: str | Path | None, own: Path) -> Path | None:
    """What was given, or else the folder's own if it is there."""
    if path is not None:
        return Path(path)
    return own if own.exists() else None
