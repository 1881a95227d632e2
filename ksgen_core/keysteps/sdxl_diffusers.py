"""The key-step image model: SDXL with IP-Adapter-Plus image tokens, read from a folder of ordinary parts.

    model_index.json unet/ vae/ text_encoder/ text_encoder_2/ tokenizer/ tokenizer_2/ scheduler/    diffusers' SDXL
    image_encoder/                             transformers' CLIPVisionModelWithProjection
    ip_adapter/ip-adapter-plus.safetensors     the IP-Adapter-Plus file format
    skill_transformer.safetensors              ours

The last three may be absent; then only the policies that do without them can be drawn.

Legend: B pictures, H, W their size in pixels, h, w that of their latents, Z latent channels, T texts, L tokens per
text, C their width, P pooled width, M image encoder's states of width E, N image tokens (of width C).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints_diffusers import quietly
from ..errors import KSGenError
from .draw import Condition, draw_key_steps
from .ip_adapter_plus import install, read
from .sdxl_files_diffusers import (
    ADAPTER_FILE,
    CLIP_MEAN,
    CLIP_STD,
    SKILL_TRANSFORMER_FILE,
    WEIGHTS,
    check,
    mean_and_std,
    read_folder,
    save_folder,
)
from .skill_transformer import SkillTransformer

__all__ = ["Condition", "KeyStepModel", "draw_key_steps"]


class KeyStepModel:
    """All parts for drawing key images, on one device and in one dtype. The parts are plain attributes.

    `pipe` is diffusers' `StableDiffusionXLPipeline`, `image_encoder`, `resampler` and `skill_transformer` may be
    None. Every method is differentiable; whoever only draws wraps it in `torch.no_grad()`.
    """

    def __init__(
        self,
        pipe: Any,
        image_encoder: Any = None,
        adapter: dict[str, Tensor] | None = None,
        skill_transformer: SkillTransformer | None = None,
        image_mean: tuple[float, ...] = CLIP_MEAN,
        image_std: tuple[float, ...] = CLIP_STD,
        folder: Path | None = None,
    ) -> None:
        self.pipe = pipe
        self.image_encoder = image_encoder
        with quietly():
            self.resampler: Any = None if adapter is None else install(pipe.unet, adapter)
        self.skill_transformer: Any = skill_transformer
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.folder = folder

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> KeyStepModel:
        """Read the folder. Raises `KSGenError`, naming the file, if one is missing, cut off or of another kind."""
        folder = Path(folder)
        check(folder)
        with quietly():
            pipe, image_encoder = read_folder(folder, dtype)
            adapter = read(folder / ADAPTER_FILE) if (folder / ADAPTER_FILE).is_file() else None
            skill = None
            if (folder / SKILL_TRANSFORMER_FILE).is_file():
                skill = SkillTransformer.load(folder / SKILL_TRANSFORMER_FILE, device, dtype)
            mean, std = mean_and_std(folder / "image_encoder/preprocessor_config.json")
            try:
                model = cls(pipe, image_encoder, adapter, skill, mean, std, folder)
            except (KeyError, ValueError, RuntimeError) as error:
                name = folder / ADAPTER_FILE
                raise KSGenError(f"{name} does not fit the UNet ({error}). Use one made for it.") from error
        for part in model.parts().values():
            part.to(device).eval()
        if model.resampler is not None:
            model.resampler.to(dtype)
        if dtype == torch.float16 and pipe.vae.config.force_upcast:
            pipe.vae.to(torch.float32)  # SDXL's own VAE overflows in half precision
        model._check_fit()
        return model

    def _check_fit(self) -> None:
        """Raise `KSGenError` if the Skill Transformer was made for other tokens or texts than this model's."""
        if self.skill_transformer is None or self.resampler is None:
            return
        config, width = self.skill_transformer.config, self.pipe.unet.config.cross_attention_dim
        got = (config.token_width, config.text_width, config.tokens_per_image)
        wanted = (width, width, self.resampler.latents.shape[1])
        if got != wanted:
            raise KSGenError(
                f"The Skill Transformer in {self.folder} was made for another model: its token width, text width "
                f"and tokens per image are {got}, here they are {wanted}. Put the one there that belongs to it."
            )

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the folder that `load` reads, weights in `dtype`. The model itself stays as it is."""
        save_folder(self, Path(folder), dtype)

    def parts(self) -> dict[str, nn.Module]:
        """The trainable parts by name; the adapter's attention layers are inside the UNet."""
        parts = {name: getattr(self.pipe, name) for name in WEIGHTS}
        for name in ("image_encoder", "resampler", "skill_transformer"):
            if getattr(self, name) is not None:
                parts[name] = getattr(self, name)
        return parts

    @property
    def device(self) -> torch.device:
        return self.pipe.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipe.unet.dtype

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
        """Each text on its own, as SDXL does -> tokens [T, L, C], mask [T, L] (False: padding), pooled [T, P]."""
        texts = list(texts)
        tokens, _, pooled, _ = self.pipe.encode_prompt(texts, device=self.device, do_classifier_free_guidance=False)
        masks = [
            tokenizer(
                texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).attention_mask.bool()
            for tokenizer in (self.pipe.tokenizer, self.pipe.tokenizer_2)
        ]
        return tokens, (masks[0] | masks[1]).to(self.device), pooled

    def image_states(self, images: Tensor) -> Tensor:
        """Pictures [B, H, W, 3] -> penultimate hidden states [B, M, E] of the image encoder (METHOD.md)."""
        side = self._image_encoder().config.image_size
        pixels = images.to(self.device, torch.float32).movedim(-1, 1)
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
        vae = self.pipe.vae
        pixels = images.to(vae.device, vae.dtype).movedim(-1, 1) * 2 - 1
        return vae.encode(pixels).latent_dist.mode().to(self.dtype) * vae.config.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, Z, h, w] -> pictures [B, H, W, 3], float32 0..1."""
        vae = self.pipe.vae
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return (pixels.float().movedim(1, -1) / 2 + 0.5).clamp(0, 1)

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """One UNet pass: noisy latents [B, Z, h, w], already scaled for the model, timesteps [B] or scalar
        -> the scheduler's prediction type [B, Z, h, w].
        """
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
